"""The model card: usage, metrics, parameters, lineage and licence of the exported model."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lmcore.model.params import ModelParams
from lmcore.tokenizer.base import END_OF_TEXT

Figures = Mapping[str, Any]

# Licences that the Hugging Face hub knows by these names; others are written as `other` with their own name.
HUB_LICENCES = (
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit", "unlicense"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cdla-sharing-1.0", "odc-by"),
)

# How a document of a corpus may begin, for the example; elsewhere the model begins by itself.
OPENINGS = {"stdlib": "import ", "tinyshakespeare": "ROMEO:"}

# The baselines of the evaluate stage in words.
BASELINES = {
    "gzip": "gzip -9",
    "xz": "xz -9",
    "zstd": "zstd --ultra -22",
    "ngram": "a Kneser-Ney model of 6-grams of the training tokens",
}

USAGE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)

prompt = {prompt}  # in training, every document follows bos_token
inputs = tokenizer(prompt, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens={new_tokens}, do_sample=True, temperature=0.8, top_k=50)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
```"""

ONE_DOCUMENT = """

In training a token saw its own document alone. transformers knows nothing of that: give it one document in a sequence,
and what it computes is what the trained model computes."""

GGUF = """

For llama.cpp there is `{file}`, tokenizer included:

```
llama-cli -m {folder}/{file} -no-cnv -p {prompt}
```"""

LIMITS = """\
## Intended use and limits

For research and teaching: to study how language models are trained, and to compare runs whose every input is known.
It only continues text in the manner of its one corpus: it follows no instructions, nothing was done to make its words
true or safe, and it may repeat passages that it was trained on."""

LIMITS_OF_BASE = """\
## Intended use and limits

For research and teaching. What the model that it began from learnt, and from which text, its own card says. Nothing
was done here to make its words true or safe, and it may repeat passages that it was trained on."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The contents of a card.

    `corpus` is the download's manifest, `lineage` the model's lineage.json, `figures` metrics by the stage's name,
    `gguf` and `curve` the names of that file and of the training's picture beside the card, if there are such.
    """

    name: str
    folder: str
    model: ModelParams
    vocab_size: int
    tokenizer: str
    gguf: str | None
    dtype: str
    weights: str
    corpus: Figures
    lineage: Figures
    figures: Mapping[str, Figures]
    curve: str | None = None


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter; what `corpus`, `lineage` and `figures` lack is left out."""
    new_tokens = min(100, facts.model.context_length // 2)
    opening = next((OPENINGS[name] for name in _names(facts) if name in OPENINGS), None)
    prompt = "tokenizer.bos_token" + (f" + {json.dumps(opening)}" if opening else "")
    parts = [
        f"---\n{_front_matter(facts)}---",
        f"# {facts.name}\n\n{_summary(facts)}",
        USAGE.format(folder=json.dumps(facts.folder), prompt=prompt, new_tokens=new_tokens)
        + (GGUF.format(file=facts.gguf, folder=facts.folder, prompt=json.dumps(opening or "The")) if facts.gguf else "")
        + (ONE_DOCUMENT if facts.model.document_mask else ""),
        f"## Figures\n\n{_table(('figure', 'value'), _figures(facts))}"
        + (f"\n\n![Training and validation loss by step]({facts.curve})" if facts.curve else ""),
        f"## Parameters\n\n{_table(('parameter', 'value'), _parameters(facts))}",
        f"## Lineage\n\n{_table(('made from', 'fingerprint or version'), _lineage(facts))}",
    ]
    if any(licences := _licences(facts)):
        told = ". ".join(
            licence or "unknown" if len(licences) == 1 else f"`{name}`: {licence or 'unknown'}"
            for name, licence in zip(_names(facts), licences, strict=True)
        )
        made = "from that text and nothing else"
        if base := _base(facts):
            made = f"from that text and from `{base}`, whose licence holds too"
        parts.append(f"## Licence of the corpus\n\n{told}. The weights are made {made}.")
    return "\n\n".join([*parts, LIMITS if _base(facts) is None else LIMITS_OF_BASE]) + "\n"


def _front_matter(facts: CardFacts) -> str:
    """Return the metadata for the Hugging Face hub (https://huggingface.co/docs/hub/model-cards)."""
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if repository := next((base["repository"] for base in _bases(facts) if "repository" in base), None):
        values["base_model"] = repository
    # Weights that began as another's are under that model's licence too, which is not known here.
    if any(licences := _licences(facts)) and not _base(facts):
        # The hub takes one name, and for anything else `other` with a name of one's own.
        together = " and ".join(dict.fromkeys(licence or "unknown" for licence in licences))
        name = re.sub(r"[^a-z0-9.]+", "-", together.lower()).strip("-.")
        values |= {"license": name} if name in HUB_LICENCES else {"license": "other", "license_name": name}
    values["tags"] = ["lmcore", "text-generation", "fine-tuned" if _base(facts) else "trained-from-scratch"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _summary(facts: CardFacts) -> str:
    export = facts.figures["export"]
    names = " and ".join(f"`{name}`" for name in _names(facts))
    corpus = f" on the corpus {names}" if names else ""
    base = _base(facts)
    made = "trained from scratch" if base is None else f"fine-tuned from `{base}`"
    return (
        f"A language model of {export['parameters']:,} parameters, {made}{corpus} with lmcore and "
        f"exported as `{export['architecture']}`."
    )


def _figures(facts: CardFacts) -> Iterable[tuple[str, Any]]:
    train, evaluate, export = (facts.figures.get(stage, {}) for stage in ("train", "evaluate", "export"))
    yield "optimizer steps", train.get("steps")
    yield "tokens seen in training", train.get("tokens")
    yield "training loss (nats per token)", train.get("train_loss")
    yield "validation loss (nats per token)", evaluate.get("val_loss")
    yield "perplexity per token", evaluate.get("perplexity")
    yield "bits per byte of held-out text", evaluate.get("bits_per_byte")
    for name, bits in evaluate.get("baselines", {}).items():
        yield f"the same for {BASELINES.get(name, name)}", bits
    for suite, measured in evaluate.get("suites", {}).items():
        for name in ("accuracy", "accuracy_normalised", "perplexity"):
            yield f"{suite}, {name.replace('_', ' ')}, of {measured['items']:,} items", measured.get(name)
    yield "weights in bytes", export["bytes"]
    yield "GGUF file in bytes", export.get("gguf_bytes")
    yield "largest difference of a weight in it", export.get("gguf_max_abs_weight_difference")
    yield f"largest logit difference from the trained model (`{facts.dtype}`)", export["max_abs_logit_difference"]


def _parameters(facts: CardFacts) -> Iterable[tuple[str, Any]]:
    yield "tokenizer", f"{facts.tokenizer}, {facts.vocab_size:,} entries, `{END_OF_TEXT}` between documents"
    for key, value in facts.model.model_dump(exclude={"diffusion"}).items():
        yield f"`model.{key}`", value
    trained = facts.lineage.get("params", {})
    diffusion = trained.get("model", {}).get("diffusion", {})  # the exported model has no masks, its training had
    for key, value in diffusion.items() if diffusion.get("block_size") else ():
        yield f"`model.diffusion.{key}`", value
    for key, value in trained.get("train", {}).items():
        yield f"`train.{key}`", value


def _lineage(facts: CardFacts) -> Iterable[tuple[str, Any]]:
    """Fingerprints are SHA-256, of a file's bytes or of a JSON value."""
    lineage = facts.lineage
    tokens, sources = lineage.get("tokens", {}), facts.corpus.get("sources", ())
    told = (" ".join(str(source[key]) for key in ("name", "version") if source.get(key)) for source in sources)
    yield "corpus", ", ".join(told) or None
    for made, value in {
        "tokenizer": lineage.get("tokenizer"),
        "training tokens": tokens.get("train"),
        "validation tokens": tokens.get("validation"),
        "run": lineage.get("run_key"),
        **{"initial weights" + " of these" * depth: base.get("weights") for depth, base in enumerate(_bases(facts))},
        "trained weights": facts.weights,
    }.items():
        yield made, value and f"`{value}`"
    for base in _bases(facts):
        if "repository" in base:
            yield "model on the Hugging Face hub", f"`{base['repository']}@{base['commit']}`"
    for name, value in lineage.get("tokenized", {}).items():
        yield f"tokens that others made, {name}", f"`{value}`"


def _bases(facts: CardFacts) -> list[Figures]:
    """The models that it was fine-tuned from, the nearest first, as lineage.json names them."""
    bases: list[Figures] = []
    base: Figures | None = facts.lineage.get("init_from")
    while base:
        bases.append(base)
        base = base.get("init_from")
    return bases


def _base(facts: CardFacts) -> str | None:
    """The model that it was fine-tuned from: repository and commit where it has any, else its checksum."""
    origin = facts.lineage.get("init_from")
    if not origin:
        return None
    return f"{origin['repository']}@{origin['commit']}" if "repository" in origin else str(origin["weights"])[:12]


def _names(facts: CardFacts) -> list[str]:
    return [source["name"] for source in facts.corpus.get("sources", ())]


def _licences(facts: CardFacts) -> list[str | None]:
    """Of every source, in their order; None where it is not known, as of one's own text."""
    return [source.get("licence") for source in facts.corpus.get("sources", ())]


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    """A Markdown table of the rows that have a value; one of them reads `| optimizer steps | 1,200 |`."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows if value is not None]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """1234567 -> `1,234,567`, 0.000123456 -> `0.000123456`, True -> `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
