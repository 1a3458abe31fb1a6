"""What each measure of the modern recipe is worth: the loss without it, all else equal.

    python benchmarks/modern_ablations.py                     # every variant, one seed
    python benchmarks/modern_ablations.py --only softcap,rope --seeds 1,2,3

A variant is the recipe with one measure left out or replaced by that of GPT-2. The learning rates are those of the
recipe; a variant could do better with rates of its own. The loss is that of the whole validation split after the last
step.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2lab import config as settings
from gpt2lab.bench import measure
from gpt2lab.config import Config
from gpt2lab.data.loader import fixed_sequences
from gpt2lab.evaluation.loss import validation_loss
from gpt2lab.model import modern, ops
from gpt2lab.model.language_model import CachedAttention
from gpt2lab.model.modern import MLP, Attention, Modern
from gpt2lab.system import precision as precisions
from gpt2lab.training import build, optimizer
from gpt2lab.training.schedule import learning_rate


class NoRotation(Modern):
    """Learned positions, added to the embedding, in place of RoPE."""

    def _build(self, config: settings.GPT2Config) -> None:
        super()._build(config)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        for block in self.model.layers:
            block.self_attn.__class__ = AttentionWithoutRotation
        self.model.embed_tokens.register_forward_hook(
            lambda _, inputs, x: x + self.positions.weight[: inputs[0].shape[1]]
        )


class AttentionWithoutRotation(Attention):
    """Ignores the angles."""

    def forward(
        self, x: Tensor, mask: Tensor | None, cached_attention: CachedAttention | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """See `Attention.forward`; the angles become zero."""
        return super().forward(x, mask, cached_attention, torch.ones_like(cos), torch.zeros_like(sin))


class AttentionWithoutNorm(Attention):
    """Queries and keys as projected and rotated."""

    def forward(
        self, x: Tensor, mask: Tensor | None, cached_attention: CachedAttention | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """See `Attention.forward`."""
        B, T, C = x.shape
        q, k, v = (
            layer(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (modern.rotate(projected, cos, sin).to(v.dtype) for projected in (q, k))
        y = ops.attention(q, k, v, mask) if cached_attention is None else cached_attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class NoQKNorm(Modern):
    """Without normalization of queries and keys."""

    def _build(self, config: settings.GPT2Config) -> None:
        super()._build(config)
        for block in self.model.layers:
            block.self_attn.__class__ = AttentionWithoutNorm


class GeluMLP(MLP):
    """GELU in place of the squared ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """See `MLP.forward`."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Gelu(Modern):
    """GELU in place of the squared ReLU."""

    def _build(self, config: settings.GPT2Config) -> None:
        super()._build(config)
        for block in self.model.layers:
            block.mlp.__class__ = GeluMLP


class RandomProjections(Modern):
    """Projections to the residual stream that begin as in GPT-2: normal, std 0.02 / sqrt(2 n_layer)."""

    def _initialize(self, generator: torch.Generator | None) -> None:
        super()._initialize(generator)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "fc2.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layer) ** 0.5, generator=generator)


class RandomHead(Modern):
    """An output head that begins normal with std 0.02."""

    def _initialize(self, generator: torch.Generator | None) -> None:
        super()._initialize(generator)
        nn.init.normal_(self.lm_head.weight, std=0.02, generator=generator)


class TiedHead(Modern):
    """The token embedding as the output head, normal with std 0.02, trained with the learning rate of the head."""

    def tie_weights(self) -> None:
        """See `LanguageModel.tie_weights`."""
        self.lm_head.weight = self.model.embed_tokens.weight

    def _initialize(self, generator: torch.Generator | None) -> None:
        super()._initialize(generator)
        nn.init.normal_(self.lm_head.weight, std=0.02, generator=generator)


class NoSoftcap(Modern):
    """Logits as computed."""

    softcap = None


# Class of the model, and the settings that differ.
VARIANTS: dict[str, tuple[type[Modern], dict[str, object]]] = {
    "recipe": (Modern, {}),
    "rope": (NoRotation, {}),
    "qk_norm": (NoQKNorm, {}),
    "relu2": (Gelu, {}),
    "zero_projections": (RandomProjections, {}),
    "zero_head": (RandomHead, {}),
    "untied_head": (TiedHead, {}),
    "softcap": (NoSoftcap, {}),
    "linear_schedule": (Modern, {"optimizer.schedule": "cosine"}),
    "no_clipping": (Modern, {"optimizer.grad_clip": 1.0}),
    "weight_decay": (Modern, {"optimizer.weight_decay": 0.0}),
}


def train(variant: type[Modern], config: Config) -> float:
    """Train a model as a recipe says, on one process.

    Args:
        variant: class of the model.
        config: the recipe.

    Returns:
        Its loss on the validation split after the last step.
    """
    with build.start_ranks(config.system) as dist:
        precision = precisions.choose(config.system.precision, dist.device)
        data = build.build_data(config.data, config.model, config.run, config.batch_plan(1, 1 << 30), dist)
        torch.manual_seed(config.run.seed)
        model = variant(config.model).to(dist.device)
        optimizers = optimizer.build(model, config.optimizer, dist, precision.dtype)
        steps = config.train.max_steps
        for step, (x, y) in enumerate(data.batches(0, steps, False, dist.device), start=1):
            with precision.autocast():
                loss = model(x, y)[1]
            assert loss is not None
            loss.backward()
            optimizer.clip_gradients(model, config.optimizer.grad_clip)
            for each in optimizers:
                for group in each.param_groups:
                    group["lr"] = learning_rate(step, steps, config.optimizer) * group["lr_scale"]
                each.step()
                each.zero_grad(set_to_none=True)
        sequences = fixed_sequences(data.val, config.model.block_size, config.train.eval_tokens)
        return validation_loss(model.eval(), data.val, 1, sequences, 64, dist, precision)[0]


def main() -> None:
    """Train the variants one after another and print their losses."""
    parser = measure.argument_parser(__doc__, list(VARIANTS))
    parser.add_argument("--config", default="quickstart_modern", help="the recipe; default: quickstart_modern")
    parser.add_argument("--steps", type=int, default=240, help="steps of each run; default: 240")
    parser.add_argument("--seeds", default="1337", metavar="A,B", help="default: 1337")
    parser.add_argument("--data", help="folder of the token shards; default: that of the recipe")
    arguments = parser.parse_args()
    print(measure.format_environment(measure.environment(torch.device("cpu"))), flush=True)
    given = {"train.max_steps": arguments.steps, **({"data.dir": arguments.data} if arguments.data else {})}
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.only:
            variant, changes = VARIANTS[name]
            config = settings.load([arguments.config], {**given, "run.seed": seed, **changes})
            if variant is TiedHead:
                head_lr = {"optimizer.embedding_lr": config.optimizer.head_lr}
                config = settings.load([arguments.config], {**given, "run.seed": seed, **head_lr})
            began = time.perf_counter()
            loss = train(variant, config)
            print(f"without {name:18} seed {seed}: {loss:.4f}  ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
