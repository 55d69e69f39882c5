"""Every mistake is one line: what is wrong, where, what to do; the exit code is 2, and nothing is written."""

import json
import os
import re

import pytest
import yaml
from helpers import is_one_line

RUN = "--checkpoint RUN"
TRAIN = (
    "train --model.encoder resnet18 --data.train ANNOTATIONS --data.train_images IMAGES "
    "--data.val ANNOTATIONS --data.val_images IMAGES"
)
VAL = "--annotations ANNOTATIONS --images IMAGES --checkpoint RUN"

# A command and parts of its message. ANNOTATIONS, IMAGES, RUN (a checkpoint) and BAD/… are replaced by paths.
MISTAKES = [
    ("caption", ["no command 'caption'", "predict"]),
    ("data", ["no command 'data'", "data fetch"]),
    # wrong options
    ("predict", ["IMAGE needed", "--help"]),
    ("predict IMAGES --bean 3", ["there is no option --bean: did you mean --beam?"]),
    ("predict IMAGES --beam three", ["--beam is three: expected a whole number"]),
    ("predict IMAGES --beam 0", ["beam is 0: expected 1 to 1000"]),
    ("predict IMAGES --n-best 9", ["n_best is 9", "beam width (5)"]),
    ("predict IMAGES --format xml", ["--format is xml: expected one of text, jsonl"]),
    ("predict IMAGES --sample true", ["--sample takes no value: type --sample or --no_sample"]),
    ("predict IMAGES --no-repeat-word=False", ["takes no value: type --no_repeat_word or --repeat_word"]),
    ("train --data.horizontal_flip false", ["type --data.horizontal_flip or --data.no_horizontal_flip"]),
    ("predict IMAGES --length_penalty -1", ["length_penalty"]),
    ("predict IMAGES --temperature 2", ["temperature is 2.0", "unless sample is true"]),
    ("predict IMAGES --groups 2", ["groups is 2", "divisor of the beam width (5)"]),
    ("predict IMAGES --sample --must dog", ["must", "sample"]),
    ("predict IMAGES --batch_size 0", ["--batch_size is 0: expected 1 or more"]),
    ("predict IMAGES --workers -5", ["--workers is -5"]),
    ("predict IMAGES --devices 2", ["--devices is 2", "--engine local"]),
    ("predict IMAGES --engine ddp", ["--engine ddp", "--output"]),
    ("predict IMAGES --device abacus", ["--device is abacus: expected auto, cpu, cuda"]),
    ("train --model.cell transformer", ["--model.cell is transformer: expected one of rnn, gru, lstm"]),
    ("train --model.layers 6", ["model.layers is 6"]),
    ("train --model.colour red", ["there is no option --model.colour"]),
    ("train --train.lr nan", ["--train.lr is nan: expected a number"]),
    ("train --train.epochs 0", ["train.epochs is 0: expected 1 or more"]),
    ("train --train.seed -1", ["train.seed is -1: expected 0 to 4294967295"]),
    (f"predict IMAGES --sample --seed {2**64}", [f"seed is {2**64}: expected 0 to 4294967295"]),
    ("train --trainer.devices 0", ["trainer.devices is 0: expected 1 or more"]),
    ("train --trainer.accelerator tpu", ["--trainer.accelerator is tpu: expected one of auto, cpu, gpu, mps"]),
    (f"{TRAIN} --trainer.accelerator cpu --trainer.precision 16-mixed", ["trainer.precision is 16-mixed", "on a CPU"]),
    ("train --check --resume", ["--check", "leave out --resume"]),
    ("train", ["--data.train", "--data.train_images"]),
    ("train --resume --output nowhere", ["--output nowhere has no run to resume", "begin one with --data.train"]),
    ("pretrain --resume --output nowhere", ["--output nowhere has no run to resume", "begin one with --data.text"]),
    ("pretrain", ["--data.text", "needed"]),
    ("evaluate --images somewhere", ["--annotations needed"]),
    ("score", ["--annotations and --results needed"]),
    ("gradients", ["--annotations needed"]),
    (f"gradients {RUN} --annotations ANNOTATIONS", ["needs the folder of its images", "--images"]),
    ("average RUN", ["--output needed"]),
    ("average RUN --output a.ckpt", ["two checkpoints or more"]),
    ("export --output out", ["--to needed"]),
    ("export --to onnx --output out --push me/mine", ["--push has no effect without --to hf"]),
    ("export --to hf --output out --int8", ["--int8 has no effect without --to onnx"]),
    ("shapes --frames 4", ["--frames has no effect without --moving"]),
    ("average RUN RUN --output a.safetensors --beam 3", ["--beam has no effect without --annotations"]),
    ("data convert ANNOTATIONS --to coco --output out --shard_size 9", ["no effect without --to webdataset"]),
    ("data inspect ANNOTATIONS --val_images IMAGES", ["--val_images has no effect without --val"]),
    ("train --train.rollouts 3", ["--train.rollouts has no effect without --train.objective scst"]),
    ("train --search.n_best 3", ["search.n_best is 3: expected 1"]),
    (f"evaluate {VAL} --n_best 3", ["--n_best has no effect without --report"]),
    (f"calibrate {VAL} --n_best 3", ["there is no option --n_best"]),
    ("serve --port 99999", ["99999", "another --host or --port"]),
    ("serve --timeout 0", ["timeout is 0.0: expected more than 0"]),
    ("export --to hf --output out --push mine", ["--push is mine: expected organisation/name"]),
    (f"predict IMAGES {RUN} --must ,", ["must is ',', which has no word"]),
    (f"predict IMAGES {RUN} --must_not .", ["must_not is '.', which has no word"]),
    (f"predict IMAGES {RUN} --output a.txt --report a.txt", ["a.txt is named as two outputs"]),
    (f"predict IMAGES --beam {10**6}", [f"beam is {10**6}: expected 1 to 1000"]),
    (f"predict IMAGES --batch_size {10**20}", [f"--batch_size is {10**20}: expected 1 or more, up to 100000"]),
    (f"train --data.batch_size {10**20}", [f"data.batch_size is {10**20}: expected a smaller number"]),
    ("train --print_config=all", ["--print_config takes no value"]),
    ("demo --port 0", ["--port is 0: expected 1 to 65535"]),
    ("shapes --count 0", ["--count is 0: expected 1 to 1000000"]),
    ("data fetch mnist", ["name is mnist: expected one of coco2014"]),
    ("data fetch coco2017 --retries -1", ["--retries is -1: expected 0 to 1000"]),
    ("data convert ANNOTATIONS --to webdataset --output out --shard_size 0", ["--shard_size is 0: expected 1 or more"]),
    ("predict IMAGES --output=", ["--output is empty: name one, or leave it out"]),
    ("predict IMAGES --checkpoint=", ["--checkpoint is empty"]),
    ("train --config=", ["--config is empty: expected a path, or one of"]),
    ("train --output=", ["--output is empty"]),
    ("pretrain --data.text=", ["--data.text is empty"]),
    ("shapes --output=", ["--output is empty"]),
    ("data fetch coco2017 --output=", ["--output is empty"]),
    ("data convert ANNOTATIONS --to coco --output=", ["--output is empty"]),
    ("plot RUN --json=", ["--json is empty"]),
    ("plot RUN --output photo.jpg", ["--output is photo.jpg: name a file that ends in .png, .svg, .pdf"]),
    ("completion ksh", ["shell is ksh: expected one of bash, zsh, fish"]),
    # missing files
    ("predict nowhere/*.png", ["nowhere/*.png"]),
    ("predict @list.txt", ["@list.txt", "check the path"]),
    ("predict IMAGES --checkpoint missing.ckpt", ["no checkpoint missing.ckpt", "captioner train"]),
    (
        "train --config missing.yaml",
        ["--config missing.yaml is neither a file nor the name of a config", "one of attention,"],
    ),
    ("train --config BAD", ["is neither a file nor the name of a config", "one of attention,"]),
    ("train --config configs/flikr8k.yaml", ["did you mean flickr8k?"]),
    ("pretrain --config language_modl", ["did you mean language_model?"]),
    ("train --config recurrence/base --config gru1", ["did you mean recurrence/gru1?"]),
    (f"{TRAIN.replace('ANNOTATIONS', 'missing.json')}", ["missing.json: no such file; check the path"]),
    ("evaluate --images IMAGES --annotations missing.json", ["missing.json: no such file; check the path"]),
    ("score --annotations ANNOTATIONS --results missing.json", ["missing.json: no such file"]),
    ("score --annotations missing.json --results a.json", ["missing.json: no such file"]),
    ("pretrain --data.text missing.txt", ["missing.txt: no such file; check the path"]),
    ("plot missing", ["missing has no logs", "--output of a run"]),
    ("data inspect missing", ["missing: no such file; check the path"]),
    ("data convert missing --to coco --output out", ["missing: no such file; check the path"]),
    # damaged files
    ("train --config BAD/config.yaml", ["BAD/config.yaml: line 2: a value or a closing bracket is missing"]),
    (
        "train --config BAD/typo.yaml",
        ["BAD/typo.yaml: line 1: there is no option --train.epoch: did you mean --train.epochs?"],
    ),
    ("train --config BAD/flat.yaml", ["BAD/flat.yaml: line 1: model is 3: expected its options"]),
    ("train --config BAD/null.yaml", ["BAD/null.yaml: line 1: model.layers is ", "expected a whole number"]),
    (
        "train --config BAD/twice.yaml",
        ["BAD/twice.yaml: line 3: train.lr occurs twice, first in line 2: leave one out"],
    ),
    ("train --config BAD/list.yaml", ["BAD/list.yaml: line 1: --data.vocabulary is ['a']: expected text"]),
    (
        "train --config BAD/unknown.yaml",
        ["BAD/unknown.yaml: line 1: there is no option --models.layers"],
    ),
    ("predict IMAGES --checkpoint BAD/text.ckpt", ["text.ckpt is not a captioner checkpoint", "not a file of weights"]),
    ("predict IMAGES --checkpoint BAD/code.ckpt", ["code.ckpt is not a captioner checkpoint", "which is not run"]),
    ("predict IMAGES --checkpoint BAD/cut.safetensors", ["cut.safetensors is not a captioner checkpoint"]),
    ("average BAD/text.ckpt RUN --output soup.safetensors", ["text.ckpt is not a captioner checkpoint"]),
    ("export --to onnx --output out --checkpoint BAD/text.ckpt", ["text.ckpt is not a captioner checkpoint"]),
    ("serve --checkpoint BAD/text.ckpt", ["text.ckpt is not a captioner checkpoint"]),
    ("evaluate --images IMAGES --annotations BAD/notes.txt", ["notes.txt", "unknown format of captions"]),
    ("evaluate --images IMAGES --annotations BAD/cut.json", ["cut.json", "JSON", "line 1"]),
    ("score --annotations ANNOTATIONS --results BAD/cut.json", ["cut.json", "JSON"]),
    ("data inspect BAD/cut.json", ["cut.json", "JSON"]),
    ("pretrain --data.text BAD/empty.txt", ["empty.txt"]),
    # options that contradict each other or the model
    (f"predict IMAGES {RUN} --must zyzzyva", ["must", "'zyzzyva'", "use another word"]),
    (f"predict IMAGES {RUN} --prefix zyzzyva", ["prefix", "'zyzzyva'"]),
    (f"{TRAIN} --model.attention soft --output out", ["attention", "grid"]),
    (f"evaluate {VAL} --compare ANNOTATIONS --compare_checkpoint RUN", ["--compare", "leave one out"]),
    ("evaluate --checkpoint RUN --annotations ANNOTATIONS --images BAD", ["112", "BAD"]),
    # files that cannot be written
    (f"predict IMAGES {RUN} --output BAD/empty.txt/captions.txt", ["empty.txt", "cannot be written"]),
    (f"predict IMAGES {RUN} --report BAD/empty.txt/page.html", ["page.html", "name another place"]),
    (f"evaluate {VAL} --output BAD/empty.txt/a.json", ["empty.txt"]),
    (f"predict IMAGES {RUN} --output BAD/photo.png", ["--output BAD/photo.png exists and is of another program"]),
    (f"predict BAD/photo.png {RUN} --output BAD/photo.png", ["is read by the same command: name another file"]),
    ("plot RUN --output BAD/photo.png", ["BAD/photo.png exists and is of another program"]),
    (f"evaluate {VAL} --report BAD/page.html", ["--report BAD/page.html exists and is of another program"]),
    (
        f"evaluate {VAL} --output BAD/results.json --compare BAD/results.json",
        ["--output", "is read by the same command"],
    ),
    ("average RUN RUN --output BAD/other.safetensors", ["of another program: name another file or delete"]),
    ("average RUN RUN --output RUN", ["RUN is read by the same command"]),
    ("train --output BAD/empty.txt/run", ["empty.txt", "--output"]),
    ("export --checkpoint RUN --to onnx --output BAD", ["BAD exists already", "--output"]),
    ("data convert ANNOTATIONS --images IMAGES --to coco --output BAD", ["BAD", "--output"]),
]


# What was typed, or a config file's text, and the end of the line before "(see captioner … --help)".
TYPOS = [
    # commands
    ("predikt a.jpg", "there is no command 'predikt': did you mean predict?"),
    ("trian", "there is no command 'trian': did you mean train?"),
    ("eval", "there is no command 'eval': did you mean evaluate?"),
    ("caption a.jpg", "there is no command 'caption': did you mean predict?"),
    ("inspect a", "there is no command 'inspect': did you mean data inspect?"),
    ("data fetc coco2017", "there is no command 'data fetc': did you mean data fetch?"),
    ("data", "there is no command 'data': expected one of data fetch, data inspect, data convert"),
    ("--halp", "there is no option --halp: did you mean --help?"),
    # options
    ("predict a.jpg --beams 3", "there is no option --beams: did you mean --beam?"),
    ("predict a.jpg --nbest 3", "there is no option --nbest: did you mean --n_best?"),
    ("predict a.jpg -beam 3", "there is no option -beam: did you mean --beam?"),
    ("predict a.jpg -b 3", "there is no option -b"),
    ("predict a.jpg --search.beam 3", "there is no option --search.beam: did you mean --beam?"),
    ("predict a.jpg --num_beams 3", "there is no option --num_beams: did you mean --beam?"),
    ("predict a.jpg --ckpt a", "there is no option --ckpt: did you mean --checkpoint?"),
    ("predict a.jpg --gpu", "there is no option --gpu: did you mean --device?"),
    ("predict a.jpg --to onnx", "there is no option --to: did you mean --top_k or --top_p?"),
    ("predict a.jpg --epochs 3", "there is no option --epochs"),
    ("train --epochs 3", "there is no option --epochs: did you mean --train.epochs?"),
    ("train --epocs 3", "there is no option --epocs: did you mean --train.epochs?"),
    ("train --model.epochs 3", "there is no option --model.epochs: did you mean --train.epochs?"),
    ("train --lr 0.1", "there is no option --lr: did you mean --train.lr?"),
    ("train --batch-size 8", "there is no option --batch_size: did you mean --data.batch_size?"),
    ("train --seed 1", "there is no option --seed: did you mean --train.seed or --search.seed?"),
    ("train --gpus 2", "there is no option --gpus: did you mean --trainer.devices?"),
    ("train --print_confg", "there is no option --print_confg: did you mean --print_config?"),
    ("train runs/mine", "runs/mine is one argument too many"),
    # values
    ("predict a.jpg --beam", "--beam needs a value"),
    ("predict a.jpg --beam=", "--beam is empty: expected a whole number"),
    ("predict a.jpg --beam 3.5", "--beam is 3.5: expected a whole number"),
    ("predict a.jpg --length_penalty abc", "--length_penalty is abc: expected a number"),
    ("train --train.teachers", "--train.teachers needs a value"),
    ("train --train.lr 1,5", "--train.lr is 1,5: expected a number"),
    ("train --resume yes", "--resume takes no value: type --resume or --no_resume"),
    ("train --model {layers:2}", "--model is {layers:2}: expected its options one by one, such as --model.NAME VALUE"),
    ("train --train 3", "--train is 3: expected its options one by one, such as --train.NAME VALUE"),
    # choices
    ("train --model.attention sft", "expected one of none, soft, adaptive, updown: did you mean soft?"),
    ("train --trainer.accelerator cuda", "expected one of auto, cpu, gpu, mps: did you mean gpu?"),
    ("train --trainer.precision bf16", "32-true, bf16-mixed, 16-mixed: did you mean bf16-mixed?"),
    ("predict a.jpg --format JSONL", "expected one of text, jsonl, csv, coco: did you mean jsonl?"),
    ("data fetch coco20017", "expected one of coco2014, coco2017, karpathy, flickr8k: did you mean coco2017?"),
    ("completion bsh", "expected one of bash, zsh, fish: did you mean bash?"),
    ("export --to onx --output o", "expected one of onnx, torch-export, hf: did you mean onnx?"),
    # config files
    ({"epocs": 3}, "mine.yaml: line 1: there is no option --epocs: did you mean --train.epochs?"),
    ({"train": {"epocs": 3}}, "mine.yaml: line 2: there is no option --train.epocs: did you mean --train.epochs?"),
    ({"modle": {"layers": 2}}, "mine.yaml: line 2: there is no option --modle.layers: did you mean --model.layers?"),
    ({"model": {"attention": "sft"}}, "expected one of none, soft, adaptive, updown: did you mean soft?"),
    ({"train": {"epochs": [3]}}, "--train.epochs is [3]: expected a whole number"),
    ({"train": {"teachers": 3}}, "--train.teachers is 3: expected a list or null or text"),
    ({"output": {"a": 1}}, "--output is {'a': 1}: expected text"),
    ({"train": [1]}, "mine.yaml: line 1: train is [1]: expected its options, indented, a line each"),
    ({3: 4}, "mine.yaml: line 1: 3 is not the name of an option"),
    ("- a\n- b\n", "mine.yaml: expected NAME: VALUE on its lines, and found - a - b"),
    ("\n", "mine.yaml: expected NAME: VALUE on its lines, and found nothing"),
    ("train: {epochs 3}\n", "mine.yaml: line 1: 'epochs 3' is not the name of an option: write NAME: VALUE"),
    ("train:\n\tepochs: 3\n", "mine.yaml: line 2: a tab: indent by spaces"),
    ("train: !mine\n  epochs: 3\n", "mine.yaml: line 1: !mine: write the value without a tag"),
    ("[a, b]: 3\n", "mine.yaml: line 1: a list or mapping as a name: write NAME: VALUE"),
    ("train:\n  epochs: 3\n lr: 1\n", "mine.yaml: line 3: expected NAME: VALUE, indented as the lines above"),
    ("output: it's: here\n", "mine.yaml: line 1: a second colon: quote the value, or mend the indentation"),
    ("\noutput: 'runs\n", "mine.yaml: line 2: a quotation mark is opened and not closed"),
    ("output: %s\n", "mine.yaml: line 1: % begins no value: quote it"),
    ("output: a\x01\n", "mine.yaml: line 1: a control character: remove it"),
    ("<<: {output: a}\n", "mine.yaml: line 1: <<: write the values themselves"),
    ({"model": {"layers": 9}}, "mine.yaml: line 2: model.layers is 9: expected 1 to 5"),
    ({"data": {"train": "a.json", "val": "a.json"}}, "mine.yaml: line 2: a.json: no such file; check the path"),
    ({"data": {"train": ""}}, "mine.yaml: line 2: --data.train is empty: name one, or leave it out"),
]
JARGON = "Parser key|Group|Key |Namespace|Expected a|Subtypes|class '|Literal|argument --|unrecognized"


@pytest.mark.parametrize(("typed", "says"), TYPOS, ids=[str(typed) for typed, _ in TYPOS])
def test_typos_name_the_nearest(cli, tmp_path, monkeypatch, typed, says):
    monkeypatch.chdir(tmp_path)
    if isinstance(typed, dict) or "\n" in typed:
        text = typed if isinstance(typed, str) else yaml.safe_dump(typed)
        (tmp_path / "mine.yaml").write_text(text)
        typed = "train --config mine.yaml"
    code, out, err = cli(*typed.split())
    assert (code, out) == (2, "")
    assert is_one_line(err), err
    assert re.sub(r" \(see captioner .*--help\)", "", err.strip()).endswith(says), err
    assert not re.search(JARGON, err)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["mine.yaml"])


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of damaged files. Read only."""
    import pickle

    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.ckpt").write_text("# not a checkpoint")
    (folder / "code.ckpt").write_bytes(pickle.dumps(os.getcwd))
    (folder / "cut.safetensors").write_bytes((1 << 40).to_bytes(8, "little"))
    (folder / "cut.json").write_text(json.dumps({"images": [{"id": 1}]})[:-5])
    (folder / "notes.txt").write_text("these are\nnot captions")
    (folder / "empty.txt").write_text("")
    (folder / "config.yaml").write_text("train: [1, ")
    (folder / "typo.yaml").write_text("train: {epoch: 3}")
    (folder / "flat.yaml").write_text("model: 3")
    (folder / "null.yaml").write_text("model: {layers: null}")
    (folder / "twice.yaml").write_text("train:\n  lr: 0.1\n  lr: 0.2\n")
    (folder / "list.yaml").write_text("data: {vocabulary: [a]}")
    (folder / "results.json").write_text("[]")
    (folder / "page.html").write_text("<!DOCTYPE html><title>Mine</title>")
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "other.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "unknown.yaml").write_text("models: {layers: 2}")
    return folder


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("The operator 'aten::cow' is not currently implemented for the MPS device.\nMore."),
        RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes."),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."),
    ],
)
def test_what_mps_cannot_do_is_one_line(cli, monkeypatch, captioner, images, error):
    """Without such a device: an operation that fails as torch does there."""

    def fails(*_, **__):
        raise error

    monkeypatch.setattr("captioner.models.captioner.load", lambda *_: captioner)
    monkeypatch.setattr("captioner.models.base.CaptionModel.search", fails)
    code, out, err = cli("predict", images[0])
    assert (code, out) == (2, "")
    assert is_one_line(err, "MPS device cannot", str(error).splitlines()[0].rstrip("."), "use the CPU")
    error.args = ("another mistake",)
    with pytest.raises(type(error), match="another mistake"):
        cli("predict", images[0])


@pytest.mark.parametrize(("command", "parts"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistakes_are_one_line(cli, run, tiny, bad, tmp_path, monkeypatch, command, parts):
    monkeypatch.chdir(tmp_path)
    places = {
        "ANNOTATIONS": str(tiny.annotations("val")),
        "IMAGES": str(tiny.images("val")),
        "RUN": str(run / "best.ckpt"),
        "BAD": str(bad),
    }

    def put(text):
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    before = {path: path.stat().st_mtime_ns for path in bad.rglob("*")}
    words = command.split()
    code, out, err = cli(*map(put, words))
    assert (code, out) == (2, "")
    name = " ".join(words[:2]) if words[0] == "data" and len(words) > 1 else words[0]
    start = "captioner" if parts[0].startswith("no command") else f"captioner {name}"
    assert err.startswith(f"{start}: error: ")
    assert is_one_line(err, *map(put, parts)), err
    assert not list(tmp_path.rglob("*"))  # nothing was written
    assert {path: path.stat().st_mtime_ns for path in bad.rglob("*")} == before
