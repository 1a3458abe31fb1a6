// Choosing a token and drawing the distribution it was sampled from. The data are attributes of the tokens (page.html.j2).
(() => {
  let chosen = 1; // position after the prompt, the same for both models
  let row = 0; // continuation, likewise

  const tokens = (side) => document.querySelectorAll(`.tokens[data-side="${side}"][data-row="${row}"] .token`);
  const percent = (p) => (p < 1e-5 ? "<0.001%" : `${(100 * p).toPrecision(p >= 0.1 ? 3 : 2)}%`);
  const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

  function element(name, classes, text) {
    const node = document.createElement(name);
    node.className = classes;
    node.textContent = text;
    return node;
  }

  function bars(token, name) {
    const list = element("div", "bars", "");
    list.append(element("h4", "", name));
    if (!token) {
      list.append(element("p", "note", "no token here"));
      return list;
    }
    const probability = Number(token.dataset.p);
    const top = JSON.parse(token.dataset.top);
    const text = token.textContent;
    const rank = top.findIndex(([label, p]) => label === text && Math.abs(p - probability) < 1e-3 * probability);
    const rows = top.map(([label, p], n) => [label, p, n === rank]);
    if (rank < 0) rows.push([text, probability, true]); // not among the most likely tokens
    for (const [label, p, sampled] of rows) {
      const row = element("div", sampled ? "bar sampled" : "bar", "");
      const fill = element("span", "fill", "");
      fill.style.width = `${100 * p}%`;
      const track = element("span", "track", "");
      track.append(fill);
      row.append(element("code", "", visible(label) || "·"), track, element("span", "share", percent(p)));
      if (sampled) row.title = "the sampled token";
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
        `Token ${chosen} after the prompt; probabilities before temperature and the other options. ▸: the sampled token. ` +
        "Click another, or use the arrow keys.";
  }

  function choose(position) {
    chosen = Math.max(1, Math.min(position, Math.max(tokens(0).length, tokens(1).length)));
    draw();
  }

  document.addEventListener("click", (event) => {
    const token = event.target.closest?.(".token");
    if (token) {
      row = Number(token.closest(".tokens").dataset.row);
      choose(Number(token.dataset.n));
    }
    if (event.target.closest?.("#write")) chosen = 1, row = 0;
  });
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const text = event.target.closest?.(".tokens");
    if (step && text) {
      event.preventDefault();
      row = Number(text.dataset.row);
      choose(chosen + step);
    }
  });

  // While text is generated, redraw at most once per frame.
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
