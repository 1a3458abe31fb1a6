"""Options of the `gpt2lab` verbs: one class per verb, one field per command-line option.

`cli_parser` builds the parser of a verb from its class, and the function of the verb takes an instance of it. The
docstring of the class is the description in `--help`, and `EXAMPLES` is the text below the options. Imports no torch,
so that help and errors are printed immediately.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from gpt2lab.generation.options import GenerationOptions, Sampling
from gpt2lab.option_values import names, option, port, whole_numbers

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
InferencePrecision = Literal["auto", "fp32", "bf16"]

MODEL_HELP = "run directory (its newest valid checkpoint), model directory, Hub id such as gpt2, or checkpoint file"
DEVICE_HELP = "device to compute on"
PRECISION_HELP = "precision of matrix products"
MIRROR_HELP = "directory to read downloads from instead of the network (or $GPT2LAB_MIRROR)"
JSON_HELP = "print one JSON object, and nothing else, to standard output"


@dataclass(frozen=True)
class SettingsOptions:
    """Recipes, and settings that override them. Base of the verbs that accept every setting of `config.Config`."""

    RECIPE: ClassVar[str]  # the recipe without --config

    config: tuple[str, ...] = option(
        "recipe: a YAML file or the name of a shipped recipe; a repeated --config overrides the one before it",
        (),
    )
    overrides: dict[str, str] = field(default_factory=dict)  # settings from the command line, by dotted name


@dataclass(frozen=True)
class TrainOptions(SettingsOptions):
    """Train a model. Settings come from the defaults, then each --config, then these options.

    The defaults below apply where the recipe sets nothing. Without --config the recipe is quickstart.
    """

    RECIPE: ClassVar[str] = "quickstart"
    EXAMPLES: ClassVar[str] = "gpt2lab train --config gpt2_124m --train.max_steps 50 --optimizer.max_lr 3e-4"

    dry_run: bool = option("print what training would need on this machine, and start nothing", False)


@dataclass(frozen=True)
class BenchOptions(SettingsOptions):
    """Time the training step of a recipe (default: gpt2_124m) and of other implementations, in turns.

    Without --config a step has 2 sequences of 512 tokens on a CPU, and 16 of 1024 on a GPU.
    """

    RECIPE: ClassVar[str] = "gpt2_124m"
    EXAMPLES: ClassVar[str] = """\
gpt2lab bench                                           GPT-2 124M, compared with transformers
gpt2lab bench --nanogpt DIR --build-nanogpt DIR         and with checkouts of these projects
gpt2lab bench --ladder --chart ladder.png               the gain of each common optimization
gpt2lab bench --profile trace.json                      where the time of a step is spent
gpt2lab bench --config config/quickstart.yaml            another recipe
"""

    rivals: tuple[str, ...] = option(
        "transformers (its defaults), transformers-best (bf16, fused AdamW, compiled on CUDA), transformers-trainer, "
        "nanogpt, build-nanogpt; or none",
        ("transformers", "transformers-best"),
        parse=lambda text: tuple(name for name in names(text) if name != "none"),
    )
    nanogpt: str | None = option("checkout of nanoGPT to measure as well", None)
    build_nanogpt: str | None = option("checkout of build-nanogpt to measure as well", None)
    rounds: int = option("rounds; each implementation has one turn per round", 5, at_least=1)
    steps: int = option("steps per turn", 2, at_least=1)
    ladder: bool = option("measure from plain fp32 to fused AdamW, adding one optimization at a time", False)
    profile: str | None = option("write a Chrome trace of a step, print its longest operations", None)
    chart: str | None = option("draw the table as a PNG", None)
    as_json: bool = option(JSON_HELP, False, flag="--json")


@dataclass(frozen=True)
class PlanOptions(SettingsOptions):
    """Estimate memory, speed, hours and cost of a recipe (default: gpt2_124m) on GPUs that need not be here.

    Several GPUs give one table; without --gpu it has all with a known price.
    """

    RECIPE: ClassVar[str] = "gpt2_124m"
    EXAMPLES: ClassVar[str] = """\
gpt2lab plan --config minigpt --gpu a100-40gb --gpus 6 --price-per-hour 7.80
gpt2lab plan --config minillm --gpu a100-80gb,h100-80gb,h200 --gpus 8
gpt2lab plan --config gpt2_124m --gpu h100-80gb --budget 20      what $20 buys
gpt2lab plan --config gpt2_xl --gpu rtx-4090 --gpus 2 --system.shard --json
"""

    gpu: tuple[str, ...] = option("GPU by name, or several names separated by commas", (), parse=names)
    gpus: int = option("number of GPUs of a run", 1, at_least=1)
    price_per_hour: float | None = option("price of all machines together (default: the table's)", None, at_least=0)
    budget: float | None = option(
        "money to spend: print the tokens that it buys, for each size of GPT-2", None, at_least=0.01
    )
    gpus_file: str | None = option("YAML file of more GPUs, in the form of gpt2lab/system/gpus.yaml", None)
    calibrate: bool = option("measure this device for later estimates, in about 20 seconds", False)
    validate: str | None = option("CSV file of measured runs: print the errors of the estimated speeds instead", None)
    as_json: bool = option(JSON_HELP, False, flag="--json")


@dataclass(frozen=True)
class PrepareOptions:
    """Make token shards from a corpus. An interrupted run is resumed and gives the same bytes."""

    EXAMPLES: ClassVar[str] = """\
gpt2lab prepare fineweb-edu                                  sample-10BT from the Hub, into data/edu_fineweb10B
gpt2lab prepare fineweb-edu --shards 20 --mirror FOLDER      2B tokens, from parquet files on disk
gpt2lab prepare files --input my/texts more.jsonl             your own text: files, or all files of a directory
gpt2lab prepare pretokenized --input FOLDER                  existing shards: check them and write a manifest
gpt2lab prepare pretokenized --input FOLDER --out OUT        shards of int32 or int64, or without val: convert them
gpt2lab prepare tinyshakespeare                              1 MB, to try it out
"""

    source: Literal["fineweb-edu", "fineweb", "files", "pretokenized", "tinyshakespeare", "stdlib", "cpython"] = option(
        "corpus", flag="source", for_path="gpt2lab prepare files --input"
    )
    out: str | None = option("directory for the shards (default: data/NAME)", None)
    input: tuple[str, ...] = option("files, directories or glob patterns; or the directory of shards", (), nargs="+")
    text_field: str = option("JSON field or parquet column that holds the text", "text")
    text_source: str | None = option(
        "pretokenized: the corpus that the shards hold, such as fineweb-edu", None, flag="--source"
    )
    subset: str = option("subset of fineweb-edu or fineweb: sample-10BT, sample-100BT, …", "sample-10BT")
    mirror: str | None = option(MIRROR_HELP, None)
    shards: int | None = option("stop after N full shards", None, at_least=1)
    shard_size: int = option("tokens of a full shard, such as 100M", 100_000_000, at_least=1)
    val_tokens: int | None = option("maximum size of the validation split (default: by source)", None, at_least=1)
    shuffle_seed: int | None = option("shuffle row groups and the documents in each", None)
    drop_duplicates: bool = option("leave out documents that occurred before", False)
    on_error: Literal["stop", "skip"] = option("what to do about unreadable input", "stop")
    tokenizer: Literal["auto", "gigatoken", "tiktoken"] = option("implementation; all give the same ids", "auto")
    check: bool = option("do not compare a sample of every shard with tiktoken", True, flag="--no-check")
    workers: int | None = option("parallel encoders (default: one per core)", None, at_least=1)
    executor: Literal["local", "ray", "slurm"] = option("local threads, or a cluster", "local")
    slurm: tuple[str, ...] = option("tasks, time, partition, or any sbatch option; repeatable", ())
    restart: bool = option("replace finished shards, and discard unfinished ones of other options", False)


@dataclass(frozen=True)
class DataOptions:
    """Show what a directory of token shards holds, or verify it."""

    action: Literal["inspect", "verify"] = option(
        "show the contents, or check every byte", flag="action", for_path="gpt2lab data inspect"
    )
    folder: str = option("directory that holds the shards", flag="folder")
    mirror: str | None = option("directory that holds the tokenizer's files", None)


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a model on HellaSwag and other tasks, and measure its validation loss."""

    checkpoint: str = option(MODEL_HELP, flag="--model-checkpoint")
    tasks: tuple[str, ...] = option(
        "tasks by name; lm_eval:NAME for a task of lm-eval", ("hellaswag",), parse=names, for_words=","
    )
    hellaswag_file: str | None = option("HellaSwag's validation set, in either schema (default: downloaded)", None)
    data_dir: str | None = option("token shards for the validation loss, or the tasks' files", None)
    mirror: str | None = option(MIRROR_HELP, None)
    limit: int | None = option("N items of each task, always the same ones (default: all)", None, at_least=1)
    val_tokens: int | None = option("tokens of the validation loss; 0: skip it (default: the run's)", None, at_least=0)
    as_json: bool = option(JSON_HELP, False, flag="--json")
    precision: Precision = option(PRECISION_HELP, "auto")
    device: Device = option(DEVICE_HELP, "auto")
    batch_tokens: int | None = option(
        "tokens of a forward pass (default: by device)", None, at_least=0, zero_is_none=True
    )
    include: str | None = option("directory of more task files for lm_eval:NAME", None)


@dataclass(frozen=True)
class SampleOptions:
    """Continue a prompt with a trained model. Text is printed as it is generated."""

    EXAMPLES: ClassVar[str] = """\
gpt2lab sample --model-checkpoint runs/x --prompt "Once" --temperature 0       greedy decoding
gpt2lab sample --model-checkpoint gpt2 --prompt-file start.txt --stop $'\\n'    up to the end of the line
echo "Once upon" | gpt2lab sample --model-checkpoint runs/x --json             for a program
"""

    checkpoint: str = option(MODEL_HELP, flag="--model-checkpoint")
    prompt: str | None = option(
        "text to continue; - for standard input (default: piped input)", None, may_be_empty=True, for_words=" "
    )
    prompt_file: str | None = option("read the prompt from a UTF-8 file", None)
    num_samples: int = option("number of continuations", 4, at_least=1)
    generation: GenerationOptions = field(default=GenerationOptions(sampling=Sampling(top_k=50)))
    stop: tuple[str, ...] = option("end a sample before this text; repeatable", ())
    as_json: bool = option(JSON_HELP, False, flag="--json")
    device: Device = option(DEVICE_HELP, "auto")
    precision: InferencePrecision = option(PRECISION_HELP, "auto")


@dataclass(frozen=True)
class AppOptions:
    """Serve a page where a trained and an untrained model continue the same prompt.

    Only this machine can open the page, unless --host or --share opens it to others.
    """

    trained: str = option(MODEL_HELP)
    untrained: str = option(
        "model to compare with: random (the initial weights of the run), or a name as above", "random"
    )
    host: str = option("address to listen on; 0.0.0.0: every network of this machine", "127.0.0.1")
    port: int = option("first port to try; the next ones follow", 7860, parse=port)
    share: bool = option("also open the page at a public address, through Gradio's servers, for a week", False)
    device: Device = option(DEVICE_HELP, "auto")
    precision: InferencePrecision = option(PRECISION_HELP, "auto")


@dataclass(frozen=True)
class ReportOptions:
    """Write the page of a run, of several runs for comparison, or of a sweep; draw the curves of runs as PNGs.

    Logs of other projects are drawn beside runs: log.txt of build-nanogpt, main.log of llm.c, the console output of
    nanoGPT, logs of modded-nanogpt, and CSV files with columns of steps and losses.
    """

    EXAMPLES: ClassVar[str] = """\
gpt2lab report runs/x                 writes runs/x/report.html
gpt2lab report runs/x runs/y          writes runs/compare_x_y.html
gpt2lab report runs/x_sweep           writes runs/x_sweep/report.html, the page of a sweep
gpt2lab report runs/x log/log.txt --tokens-per-step 524288
"""

    runs: tuple[str, ...] = option("run directories, such as runs/quickstart, and logs", flag="runs", nargs="+")
    tokens_per_step: tuple[int, ...] = option(
        "tokens of a step in the logs, for a common axis; one number, or one for each log: 524288,491520",
        (),
        parse=whole_numbers,
    )
    out: str | None = option("file of the page (default: report.html in the run)", None)
    price_per_hour: float | None = option("price of all machines of a run together", None, at_least=0)


@dataclass(frozen=True)
class ExportOptions:
    """Write a model with tokenizer and card for transformers, vLLM, llama.cpp, the Hub, or as a Hugging Face Space."""

    EXAMPLES: ClassVar[str] = """\
gpt2lab export --model-checkpoint runs/x --out out/x
gpt2lab export --model-checkpoint runs/x --space out/space
gpt2lab export --model-checkpoint runs/x --push me/gpt2-mine --dry-run           lists the files
gpt2lab export --model-checkpoint runs/x --space out/space --push me/try-it --public
"""

    checkpoint: str = option(MODEL_HELP, flag="--model-checkpoint")
    out: str | None = option(
        "new or empty directory, or an earlier export of this model, to replace", None, for_words=""
    )
    space: str | None = option("such a directory, in which an app runs as a Hugging Face Space", None)
    push: str | None = option("OWNER/NAME: upload it to the Hub; private if the repository is new", None)
    public: bool = option("let everybody see what is uploaded", False)
    dry_run: bool = option("list what --push would upload, and write and upload nothing", False)
    dtype: Literal["fp32", "bf16", "fp16"] = option("dtype of the weights; they are trained in fp32", "fp32")
    mirror: str | None = option(MIRROR_HELP, None)


@dataclass(frozen=True)
class ImportOptions:
    """Convert a checkpoint of another project to a Hugging Face directory, as `gpt2lab export` writes it.

    Reads nanoGPT's ckpt.pt, build-nanogpt's model_*.pt, llm.c's model .bin, and state dicts with GPT-2's names. No code
    in the file is run. The commands that take a model also read the file itself.
    """

    EXAMPLES: ClassVar[str] = """\
gpt2lab import model_19072.pt --out out/mine                 build-nanogpt
gpt2lab import out/ckpt.pt --out out/mine --dtype bf16       nanoGPT
gpt2lab evaluate --model-checkpoint model_19072.pt           without a conversion
"""

    file: str = option("the checkpoint", flag="file")
    out: str = option("new or empty directory, or an earlier export, which is replaced")
    dtype: Literal["fp32", "bf16", "fp16"] = option("dtype of the weights", "fp32")
    mirror: str | None = option("directory that holds the tokenizer's files", None)


@dataclass(frozen=True)
class PrintSettingsOptions:
    """Print every setting with its type, default and meaning, or translate a settings file of another project.

    `translate FILE` prints the YAML for --config. FILE is YAML, or Python such as nanoGPT's config/train_gpt2.py, which
    is read and never run. What has no counterpart is a warning.
    """

    EXAMPLES: ClassVar[str] = """\
gpt2lab settings > settings.md
gpt2lab settings translate config/train_gpt2.py > my.yaml
"""

    action: tuple[str, ...] = option("translate FILE", (), flag="action", nargs="*")
    schema: bool = option("print a JSON schema, for completion in an editor", False)
