// Choosing a token, and drawing what could have stood in its place. All of it comes with the tokens (markup.py).
(() => {
  let chosen = 1; // position after the prompt, the same for both models

  const tokens = (side) => document.querySelectorAll(`.tokens[data-side="${side}"] .token`);
  const percent = (p) => (p < 1e-5 ? "<0.001%" : `${(100 * p).toPrecision(p >= 0.1 ? 3 : 2)}%`);
  const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

  function element(name, classes, text) {
    const made = document.createElement(name);
    made.className = classes;
    made.textContent = text;
    return made;
  }

  function bars(token, name) {
    const list = element("div", "bars", "");
    list.append(element("h4", "", name));
    if (!token) {
      list.append(element("p", "note", "no token here"));
      return list;
    }
    const drawn = Number(token.dataset.p);
    const top = JSON.parse(token.dataset.top);
    const text = token.textContent;
    const at = top.findIndex(([other, p]) => other === text && Math.abs(p - drawn) < 1e-3 * drawn);
    const rows = top.map(([other, p], n) => [other, p, n === at]);
    if (at < 0) rows.push([text, drawn, true]); // it was drawn from further down
    for (const [other, p, taken] of rows) {
      const row = element("div", taken ? "bar taken" : "bar", "");
      const fill = element("span", "fill", "");
      fill.style.width = `${100 * p}%`;
      const track = element("span", "track", "");
      track.append(fill);
      row.append(element("code", "", visible(other) || "·"), track, element("span", "share", percent(p)));
      if (taken) row.title = "the token that was drawn";
      list.append(row);
    }
    return list;
  }

  function draw() {
    document.querySelectorAll(".token.chosen").forEach((token) => token.classList.remove("chosen"));
    let any = false;
    for (const side of [0, 1]) {
      const panel = document.getElementById(`next-${side}`);
      if (!panel) return;
      const token = tokens(side)[chosen - 1];
      any ||= Boolean(token);
      token?.classList.add("chosen");
      panel.replaceChildren(...(tokens(0).length || tokens(1).length ? [bars(token, panel.dataset.name)] : []));
    }
    if (any)
      document.getElementById("which").textContent =
        `Token ${chosen} after the prompt, before temperature and the rest; ▸ marks the one that was drawn. ` +
        "Click another, or use the arrow keys.";
  }

  function choose(position) {
    chosen = Math.max(1, Math.min(position, Math.max(tokens(0).length, tokens(1).length)));
    draw();
  }

  document.addEventListener("click", (event) => {
    const token = event.target.closest?.(".token");
    if (token) choose(Number(token.dataset.n));
    if (event.target.closest?.("#write")) chosen = 1;
  });
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && event.target.closest?.(".tokens")) {
      event.preventDefault();
      choose(chosen + step);
    }
  });

  // Texts grow: the choice is drawn again, once a frame at most.
  let due = false;
  new MutationObserver((changes) => {
    if (due || !changes.some(({ target }) => target.closest?.("#texts"))) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      draw();
    });
  }).observe(document, { childList: true, subtree: true });
})();
