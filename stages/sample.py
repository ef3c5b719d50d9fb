"""sample: let the model continue the prompts."""

from pathlib import Path

from lmcore.errors import report_errors
from lmcore.files import write_folder, write_json, write_text
from lmcore.generate.params import SampleParams
from lmcore.generate.quantize import convert_weights
from lmcore.generate.samples import draw_samples, measure_samples, render_json_lines, render_markdown
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import claim_device
from lmcore.model.save_load import load_model
from lmcore.params import read_params, read_section
from lmcore.tokenizer.load import load_tokenizer


def main() -> None:
    params = read_section(SampleParams, "sample")
    device = claim_device(read_section(HardwareParams, "hardware"), read_params())
    model, tokenizer = load_model(Path("models/gpt"), device), load_tokenizer(Path("models/gpt"))
    convert_weights(model, params.weights)
    samples, stats = draw_samples(model, tokenizer, params)
    with write_folder(Path("reports/samples")) as folder:
        write_text(folder / "samples.md", render_markdown(params, samples))
        write_text(folder / "samples.jsonl", render_json_lines(samples))
    write_json(Path("reports/metrics/sample.json"), measure_samples(samples, stats))


if __name__ == "__main__":
    with report_errors():
        main()
