"""The model card: front matter that the hub reads, every figure that is known, nothing that is not."""

from typing import Any

import pytest
import yaml
from tiny import TINY_MODEL

from lmcore.export.card import CardFacts, render_card

MODEL = TINY_MODEL.model_copy(update={"n_layers": 4, "d_model": 256, "context_length": 128})
EXPORT = {
    "architecture": "Qwen3ForCausalLM",
    "parameters": 4_321_000,
    "bytes": 17,
    "max_abs_logit_difference": 1.23e-06,
}
LINEAGE = {
    "run_key": "a1b2",
    "params": {"model": MODEL.model_dump(), "train": {"learning_rate": 6e-05, "grad_clip": None, "batch_size": 16}},
    "tokens": {"train": "7c1", "validation": "7c2"},
    "tokenizer": "7c3",
}
TRAIN = {"steps": 1200, "tokens": 9_830_400, "train_loss": 2.25, "val_loss": 2.5, "bits_per_byte": 1.4}
STDLIB = {"name": "stdlib", "licence": "PSF-2.0", "url": None, "version": "3.11.2"}
OWN = {"name": "notes", "licence": None, "url": None, "version": None, "path": "texts/notes"}
CORPUS = {"sources": [STDLIB], "files": []}
EVALUATE = {"val_loss": 2.4, "perplexity": 11.0, "bits_per_byte": 1.3, "baselines": {"xz": 1.5, "ngram": 1.4}}


def make_card(
    lineage: dict[str, Any],
    figures: dict[str, dict[str, Any]],
    corpus: dict[str, Any] | None = None,
    gguf: str | None = None,
    curve: str | None = None,
) -> str:
    facts = CardFacts(
        name="tiny-python",
        folder="models/export",
        model=MODEL,
        vocab_size=4096,
        tokenizer="bpe",
        gguf=gguf,
        dtype="float32",
        weights="7c4",
        corpus=corpus or {},
        lineage=lineage,
        figures={"export": EXPORT, **figures},
        curve=curve,
    )
    return render_card(facts)


def read_front_matter(card: str) -> dict[str, Any]:
    start, front_matter, _ = card.split("---\n", maxsplit=2)
    assert start == ""
    values: dict[str, Any] = yaml.safe_load(front_matter)
    return values


@pytest.mark.parametrize(
    "line",
    [
        "# tiny-python",
        'folder = "models/export"',
        'prompt = tokenizer.bos_token + "import "  # in training, every document follows bos_token',
        "| optimizer steps | 1,200 |",
        "| tokens seen in training | 9,830,400 |",
        "| training loss (nats per token) | 2.25 |",
        "| validation loss (nats per token) | 2.4 |",
        "| bits per byte of held-out text | 1.3 |",
        "| the same for xz -9 | 1.5 |",
        "| the same for a Kneser-Ney model of 6-grams of the training tokens | 1.4 |",
        "| largest logit difference from the trained model (`float32`) | 1.23e-06 |",
        "| `model.qk_norm` | true |",
        "| `train.learning_rate` | 6e-05 |",
        "| corpus | stdlib 3.11.2 |",
        "| tokenizer | `7c3` |",
        "| training tokens | `7c1` |",
        "| trained weights | `7c4` |",
    ],
)
def test_card_states_what_is_known(line: str) -> None:
    assert line in make_card(LINEAGE, {"train": TRAIN, "evaluate": EVALUATE}, CORPUS).splitlines()


def test_card_lists_benchmarks() -> None:
    hellaswag = {"items": 10_042, "skipped": {}, "accuracy": 0.25, "accuracy_normalised": 0.3125, "sha256": "7c6"}
    lines = make_card({}, {"evaluate": {"suites": {"hellaswag": hellaswag}}}).splitlines()
    assert "| hellaswag, accuracy, of 10,042 items | 0.25 |" in lines
    assert "| hellaswag, accuracy normalised, of 10,042 items | 0.3125 |" in lines


def test_card_leaves_out_what_is_not_known() -> None:
    card = make_card({}, {})
    assert "None" not in card
    assert "Licence" not in card
    assert "perplexity" not in card
    assert "license" not in read_front_matter(card)
    assert "prompt = tokenizer.bos_token  #" in card
    assert "| weights in bytes | 17 |" in card


def test_tokens_that_others_made_are_named_with_their_checksum() -> None:
    card = make_card({**LINEAGE, "tokenized": {"train.bin": "7c5"}}, {})
    assert "| tokens that others made, train.bin | `7c5` |" in card.splitlines()
    assert "corpus `" not in card


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC0-1.0", {"license": "cc0-1.0"}),
        ("PSF-2.0", {"license": "other", "license_name": "psf-2.0"}),
        ("public domain", {"license": "other", "license_name": "public-domain"}),
        (None, {}),
    ],
)
def test_front_matter_is_what_the_hub_reads(licence: str | None, expected: dict[str, str]) -> None:
    values = read_front_matter(make_card({}, {}, {"sources": [{"name": "texts", "licence": licence}]}))
    assert values.pop("tags")
    assert values == {"library_name": "transformers", "pipeline_tag": "text-generation", **expected}


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "MIT"], {"license": "mit"}),
        (["CC0-1.0", "ODC-By", "CC0-1.0"], {"license": "other", "license_name": "cc0-1.0-and-odc-by"}),
        (["MIT", None], {"license": "other", "license_name": "mit-and-unknown"}),
        (["CC-BY-SA-3.0 and GFDL"], {"license": "other", "license_name": "cc-by-sa-3.0-and-gfdl"}),
        ([None, None], {}),
    ],
)
def test_several_licences_are_one_name_to_the_hub(licences: list[str | None], expected: dict[str, str]) -> None:
    sources = [{"name": f"source-{at}", "licence": licence} for at, licence in enumerate(licences)]
    values = read_front_matter(make_card({}, {}, {"sources": sources}))
    assert {key: value for key, value in values.items() if key.startswith("license")} == expected


def test_a_mixture_names_all_of_its_sources() -> None:
    lines = make_card(LINEAGE, {}, {"sources": [OWN, STDLIB], "files": []}).splitlines()
    assert any("trained from scratch on the corpus `notes` and `stdlib` with lmcore" in line for line in lines)
    assert "| corpus | notes, stdlib 3.11.2 |" in lines
    assert any(line.startswith("`notes`: unknown. `stdlib`: PSF-2.0. The weights are made") for line in lines)
    assert any('tokenizer.bos_token + "import "' in line for line in lines)


def test_a_fine_tuned_model_names_what_it_began_with() -> None:
    origin = {"weights": "7c9", "run_key": None, "repository": "owner/name", "commit": "c0ffee"}
    card = make_card({**LINEAGE, "init_from": origin}, {}, CORPUS)
    assert "fine-tuned from `owner/name@c0ffee` on the corpus `stdlib` with lmcore" in card
    assert "| initial weights | `7c9` |" in card.splitlines()
    assert "from scratch" not in card
    assert "nothing else" not in card
    front = read_front_matter(card)
    assert front["tags"][-1] == "fine-tuned"
    assert front["base_model"] == "owner/name"
    assert "license" not in front  # the weights are under the other model's too
    assert "every input" not in card
    assert "| model on the Hugging Face hub | `owner/name@c0ffee` |" in card.splitlines()


def test_a_model_that_was_tuned_twice_names_both_it_began_with() -> None:
    first = {"weights": "7c9", "run_key": None, "repository": "owner/name", "commit": "c0ffee"}
    card = make_card({**LINEAGE, "init_from": {"weights": "8d1", "run_key": "r", "init_from": first}}, {}, CORPUS)
    assert read_front_matter(card)["base_model"] == "owner/name"
    assert "| initial weights | `8d1` |" in card.splitlines()
    assert "| initial weights of these | `7c9` |" in card.splitlines()


def test_a_file_for_llama_cpp_is_mentioned() -> None:
    export = {**EXPORT, "gguf_bytes": 1234, "gguf_max_abs_weight_difference": 0.000123}
    card = make_card(LINEAGE, {"export": export}, CORPUS, gguf="tiny-python.gguf")
    assert 'llama-cli -m models/export/tiny-python.gguf -no-cnv -p "import "' in card
    assert "| GGUF file in bytes | 1,234 |" in card.splitlines()
    assert "llama" not in make_card(LINEAGE, {}, CORPUS)


def test_the_curve_is_shown_where_there_is_one() -> None:
    assert "![Training and validation loss by step](training.svg)" in make_card(LINEAGE, {}, curve="training.svg")
    assert "![" not in make_card(LINEAGE, {})
