"""Compare `cab-extract` with timm: q, k and logits of ViT and DeiT teachers, the evaluation transform, and labels.

Usage:  python pipelines/check_timm.py [--bin target/release/cab-extract] [--keep DIR]
        python pipelines/check_timm.py --write-fixtures        (writes tests/fixtures/timm/ and runs nothing else)

Random-weight checkpoints are made and saved by timm itself, extracted by the binary from a folder of images made here,
dumped, and run again through timm with hooks on `blocks[i].attn.qkv`. One line per check; exit 1 if any fails.
Needs: torch, torchvision, timm (1.0.16 or newer), safetensors, pillow, numpy, pyarrow.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

ROOT = Path(__file__).resolve().parent.parent
ODD = {"img_size": 40, "patch_size": 8, "embed_dim": 80, "depth": 3, "num_heads": 5, "mlp_ratio": 3.0, "num_classes": 7}
TINY = {"img_size": 24, "patch_size": 8, "embed_dim": 20, "depth": 2, "num_heads": 5, "num_classes": 4}
# name, timm architecture, changed arguments, input size asked of cab-extract (none: the model's own)
CASES = [
    ("vit-tiny", "vit_tiny_patch16_224", {}, None),
    ("deit-small", "deit_small_patch16_224", {}, None),
    ("odd", "vit_tiny_patch16_224", ODD, None),
    ("deit-small at 160", "deit_small_patch16_224", {}, 160),
    ("odd at 72", "vit_tiny_patch16_224", ODD, 72),
]
RECORDS = 8
failed = []


def check(name, ok, figures):
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {figures}", flush=True)
    if not ok:
        failed.append(name)


def checkpoint(directory, architecture, changes, seed=0):
    """A timm hub directory of a model in which no tensor is zero, one or otherwise special."""
    torch.manual_seed(seed)
    model = timm.create_model(architecture, **changes).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif name in ("pos_embed", "cls_token"):
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) / weight[0].numel() ** 0.5)
    save_for_hf(model, directory, model_args={"in_chans": 3, **changes}, safe_serialization=True)


def open_timm(directory, size=None):
    """The model of a hub directory through timm's own loader, at another input size when asked."""
    changes = {} if size is None else {"img_size": size}
    return timm.create_model(f"local-dir:{directory}", pretrained=True, **changes).eval()


@torch.no_grad()
def reference(model, pixels):
    """q and k `[n, len, heads, head_dim]` of every layer, and the logits, of u8 `pixels` [n, channels, h, w]."""
    seen = []
    hooks = [b.attn.qkv.register_forward_hook(lambda _m, _i, out: seen.append(out)) for b in model.blocks]
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    logits = model((pixels.float() / 255 - mean) / std)
    for hook in hooks:
        hook.remove()
    heads = model.blocks[0].attn.num_heads
    parts = [out.reshape(*out.shape[:2], 3, heads, -1) for out in seen]
    return [p[:, :, 0].contiguous() for p in parts], [p[:, :, 1].contiguous() for p in parts], logits


def picture(rng, height, width):
    """Something photograph-like: smooth colour fields, hard edges, a little noise."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(4):
            fx, fy, phase = rng.uniform(1, 14), rng.uniform(1, 14), rng.uniform(0, 6.3)
            image[..., channel] += np.sin(fx * x * 6.3 + fy * y * 6.3 + phase) * rng.uniform(10, 30)
    for _ in range(6):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        bottom, right = top + rng.integers(4, height // 2), left + rng.integers(4, width // 2)
        image[top:bottom, left:right] += rng.uniform(-60, 60, 3)
    return (image + 128 + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


def make_folder(root):
    """Three classes; images smaller, larger, wide, tall and exact, grey, with alpha and palette, in every file format."""
    rng = np.random.default_rng(0)
    plan = [
        ("cat/a_wide.png", 240, 400, "RGB", {}), ("cat/b_tall.png", 400, 230, "RGB", {}),
        ("cat/c_exact.png", 224, 224, "RGB", {}), ("cat/d_small.png", 61, 90, "RGB", {}),
        ("dog/e_grey.png", 250, 260, "L", {}), ("dog/f_alpha.png", 300, 270, "RGBA", {}),
        ("dog/g_palette.png", 280, 256, "P", {}), ("dog/h_lossless.webp", 257, 300, "RGB", {"lossless": True}),
        ("eel/i_full.jpg", 320, 256, "RGB", {"quality": 92, "subsampling": 0}),
        ("eel/j_half.jpg", 301, 399, "RGB", {"quality": 90}), ("eel/k_grey.jpg", 256, 300, "L", {"quality": 90}),
        ("eel/l_progressive.jpg", 333, 250, "RGB", {"quality": 85, "progressive": True}),
    ]
    for name, height, width, mode, options in plan:
        image = Image.fromarray(picture(rng, height, width))
        if mode == "RGBA":
            image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
        else:
            image = image.convert(mode)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **options)


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def error(ours, expected):
    ours, expected = ours.double(), expected.double()
    return ((ours - expected).norm() / expected.norm()).item()


def compare_tensors(name, model, dump):
    q, k, logits = reference(model, dump["input"])
    for letter, expected in (("q", q), ("k", k)):
        missing = [i for i in range(len(expected)) if f"{letter}.{i:02}" not in dump]
        if missing:
            check(f"{name}: {letter}", False, f"the dump lacks layers {missing}")
            continue
        errors = [error(dump[f"{letter}.{i:02}"], each) for i, each in enumerate(expected)]
        shape = list(expected[0].shape)
        shapes_agree = all(list(dump[f"{letter}.{i:02}"].shape) == shape for i in range(len(expected)))
        check(f"{name}: {letter} of {len(errors)} layers {shape}", shapes_agree and max(errors) < 1e-5,
              f"relative error at most {max(errors):.2e} (layer {int(np.argmax(errors))})")
    e = error(dump["logits"], logits)
    check(f"{name}: logits {list(logits.shape)}", e < 1e-5, f"relative error {e:.2e}")


def file_of(row, folder):
    """The image a catalog row was made from."""
    for value in (row["source"], row["sample_id"]):
        for path in (Path(str(value)), folder / str(value)):
            if path.is_file():
                return path
    sys.exit(f"catalog row {row} names no file of {folder}")


def compare_views(name, model, size, dump, rows, folder):
    options = resolve_data_config({} if size is None else {"img_size": size}, model=model)
    transform = create_transform(**{**options, "mean": (0, 0, 0), "std": (1, 1, 1)})
    by_kind = {}
    for position, row in enumerate(rows):
        if row["view"] != 0:
            continue
        path = file_of(row, folder)
        expected = (transform(Image.open(path).convert("RGB")) * 255).round()
        difference = (dump["input"][position].float() - expected).abs()
        by_kind.setdefault(path.suffix[1:], []).append((difference.max().item(), difference.mean().item(), path.name))
    for kind, each in sorted(by_kind.items()):
        worst, mean = max(each), max(m for _, m, _ in each)
        # JPEG decoders may round and upsample chroma differently, at single pixels by more
        limit = 2 if kind != "jpg" else 8
        check(f"{name}: view 0 of {len(each)} .{kind} against timm's transform", worst[0] <= limit and mean <= 0.5,
              f"difference at most {worst[0]:.0f} of 255 ({worst[2]}), mean at most {mean:.4f}")
    if not by_kind:
        check(f"{name}: view 0", False, "no record of view 0 among those dumped")


def compare_labels(name, dump, rows, folder):
    classes = sorted(p.name for p in folder.iterdir())
    expected = [classes.index(file_of(row, folder).parent.name) for row in rows]
    found = dump["label"].tolist()
    check(f"{name}: labels", found == expected, f"{found}, by folder {expected}")


def compare(name, architecture, changes, size, binary, work):
    folder, teacher, cache = work / "images", work / "teacher", work / "cache"
    for old in (teacher, cache):
        shutil.rmtree(old, ignore_errors=True)
    checkpoint(teacher, architecture, changes)
    command = [binary, "--teacher", teacher, "--data", folder, "--out", cache, "--layers", "all", "--views", 2]
    run(command + ([] if size is None else ["--image-size", size]))
    table = pyarrow.parquet.read_table(cache / "catalog.parquet").to_pylist()
    catalog = sorted((row for row in table if row["split"] == "train"), key=lambda row: row["record"])
    samples = len(list(folder.glob("*/*")))
    check(f"{name}: catalog", len(catalog) == 2 * samples, f"{len(catalog)} train records of {samples} images x 2 views")
    model = open_timm(teacher, size)
    for first, what in ((0, "view 0"), (samples, "view 1")):
        last = first + (samples if first == 0 else RECORDS)
        dumped = work / "dump.safetensors"
        dumped.unlink(missing_ok=True)
        run([binary, "dump", "--cache", cache, "--records", f"{first}..{last}", "--to", dumped])
        dump, rows = load_file(dumped), [row for row in catalog if first <= row["record"] < last]
        compare_tensors(f"{name}, {what}", model, dump)
        compare_labels(f"{name}, {what}", dump, rows, folder)
        if first == 0:
            compare_views(name, model, size, dump, rows, folder)


def write_fixtures(directory):
    """A timm checkpoint of some kilobytes and what timm makes of two inputs, at its own size and at two others."""
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint(directory, "vit_tiny_patch16_224", TINY)
    generator = torch.Generator().manual_seed(1)
    expect = {}
    for size in (24, 40, 16):
        suffix = "" if size == 24 else f"_{size}"
        pixels = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
        q, k, logits = reference(open_timm(directory, size), pixels)
        expect[f"input{suffix}"], expect[f"logits{suffix}"] = pixels, logits
        for layer in range(len(q)):
            expect[f"q{suffix}.{layer}"], expect[f"k{suffix}.{layer}"] = q[layer], k[layer]
    save_file(expect, directory / "expect.safetensors")
    for path in sorted(directory.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release/cab-extract")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    parser.add_argument("--write-fixtures", action="store_true")
    args = parser.parse_args()
    if args.write_fixtures:
        return write_fixtures(ROOT / "tests/fixtures/timm")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        shutil.rmtree(work / "images", ignore_errors=True)
        make_folder(work / "images")
        for name, architecture, changes, size in CASES:
            compare(name, architecture, changes, size, args.bin.resolve(), work)
    print(f"{len(failed)} checks failed" if failed else "all checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
