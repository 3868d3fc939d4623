"""Train the embedded default teacher: a small ViT for 28 x 28 grey images, on Fashion-MNIST's 60,000 training images.

Usage:  python pipelines/train_vit_nano.py [--data DIR] [--out DIR] [--patch 7|4] [--epochs N] [--threads N]

Writes OUT/vit-nano.safetensors (timm's names, float16) and OUT/vit-nano.json (timm's hub config form), then reads the
files back and prints the accuracy on the 10,000 test images, as they are and under the affine views of the quickstart.
DIR holds the four original files `train-images-idx3-ubyte.gz` and companions (Debian: package dataset-fashion-mnist).
Takes 11 minutes on 2 cores (`OMP_WAIT_POLICY=passive` helps when they are shared).
Needs: torch (2.9 or newer, for Muon), timm, safetensors, numpy.
"""

import argparse
import ctypes
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from make_sample import read_idx

MEAN, STD = 0.2860, 0.3530
LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def build(config):
    """The timm model of a config.json."""
    return VisionTransformer(
        num_classes=config["num_classes"], global_pool=config["global_pool"], **config["model_args"]
    )


def make_config(patch, embed_dim, heads):
    """The content of config.json, as timm writes it for the hub."""
    return {
        "architecture": f"vit_nano_patch{patch}_28",
        "num_classes": len(LABELS),
        "num_features": embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": 28, "patch_size": patch, "in_chans": 1, "embed_dim": embed_dim, "depth": 6, "num_heads": heads,
        },
        "pretrained_cfg": {
            "input_size": [1, 28, 28], "mean": [MEAN], "std": [STD], "crop_pct": 1.0, "interpolation": "bicubic",
            "num_classes": len(LABELS), "label_names": LABELS,
        },
    }


def affine(pixels, share, generator):
    """`pixels` [batch, 1, h, w], a `share` of them scaled (0.85-1.15), turned (6 degrees) and shifted (0.06 of the side)."""
    batch = len(pixels)
    draw = torch.rand(5, batch, generator=generator)
    on = (draw[4] < share).float()
    scale = 1 + on * (draw[0] * 0.30 - 0.15)
    angle = on * (draw[1] * 2 - 1) * math.radians(6)
    shift_x, shift_y = on * (draw[2] * 2 - 1) * 0.12, on * (draw[3] * 2 - 1) * 0.12  # the grid is 2 wide
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack([torch.stack([cos, sin, shift_x], 1), torch.stack([-sin, cos, shift_y], 1)], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def normalise(pixels):
    return (pixels / 255 - MEAN) / STD


def optimizers(model, lr, weight_decay):
    """Muon for the blocks' matrices, AdamW for all else; no decay for vectors, positions and the class token."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blocks.")]
    known = {id(p) for p in matrices}
    rest = [(n, p) for n, p in model.named_parameters() if id(p) not in known]
    plain = [p for n, p in rest if p.ndim == 1 or n in ("pos_embed", "cls_token")]
    decayed = [p for n, p in rest if not (p.ndim == 1 or n in ("pos_embed", "cls_token"))]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}], lr=lr / 2
    )
    return [muon, adamw]


@torch.no_grad()
def evaluate(model, images, labels, share=0.0, seed=1):
    """Top-1 in percent, mean negative log-likelihood and mean confidence; `share` > 0 looks at affine views."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    right = nll = confidence = 0.0
    for start in range(0, len(images), 500):
        pixels = images[start : start + 500].float()
        if share:
            pixels = affine(pixels, share, generator).round()
        log_p = model(normalise(pixels)).float().log_softmax(1)
        target = labels[start : start + 500]
        right += (log_p.argmax(1) == target).sum().item()
        nll += F.nll_loss(log_p, target, reduction="sum").item()
        confidence += log_p.max(1).values.exp().sum().item()
    return 100 * right / len(images), nll / len(images), 100 * confidence / len(images)


def show(name, figures):
    print(f"{name}: top-1 {figures[0]:.2f} %, nll {figures[1]:.4f}, mean confidence {figures[2]:.1f} %", flush=True)


def train(model, images, labels, test, args):
    generator = torch.Generator().manual_seed(args.seed)
    both = optimizers(model, args.lr, args.weight_decay)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in both]
    per_epoch = len(images) // args.batch
    total = args.steps or args.epochs * per_epoch
    warmup = max(1, total // 20)
    start, step, losses = time.time(), 0, []
    while step < total:
        order = torch.randperm(len(images), generator=generator)
        for position in range(per_epoch):
            if step == total:
                break
            model.train()
            factor = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / total))
            for opt, lrs in zip(both, peaks):
                for group, peak in zip(opt.param_groups, lrs):
                    group["lr"] = peak * factor
            rows = order[position * args.batch : (position + 1) * args.batch]
            pixels = affine(images[rows].float(), args.share, generator)
            loss = F.cross_entropy(model(normalise(pixels)), labels[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in both:
                opt.step()
                opt.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
            if step % args.eval_every == 0 or step == total:
                secs = time.time() - start
                print(f"step {step}/{total}, {secs:.0f} s, loss {sum(losses) / len(losses):.4f}", end="; ", flush=True)
                show("first 2,000 test images", evaluate(model, test[0][:2000], test[1][:2000]))
                losses = []


def keep_freed_memory():
    """Keep freed tensors in the heap: glibc hands them back and faults them in again at every step, at half the speed."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another libc
        return
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets")
    parser.add_argument("--patch", type=int, default=7, choices=[4, 7])
    parser.add_argument("--embed-dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=0, help="stop the schedule here instead of after --epochs")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-2, help="Muon's; AdamW takes half of it")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--share", type=float, default=0.75, help="share of the training images that are transformed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eval-every", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    keep_freed_memory()

    def split(name):
        images = read_idx(args.data / f"{name}-images-idx3-ubyte.gz")
        labels = read_idx(args.data / f"{name}-labels-idx1-ubyte.gz")
        return torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.copy()).long()

    images, labels = split("train")
    test = split("t10k")
    config = make_config(args.patch, args.embed_dim, args.heads)
    model = build(config)
    train(model, images, labels, test, args)

    args.out.mkdir(parents=True, exist_ok=True)
    weights, about = args.out / "vit-nano.safetensors", args.out / "vit-nano.json"
    save_file({n: t.half().contiguous() for n, t in model.state_dict().items()}, weights, metadata={"format": "pt"})
    about.write_text(json.dumps(config, indent=2) + "\n")

    config = json.loads(about.read_text())
    model = build(config)
    model.load_state_dict({n: t.float() for n, t in load_file(weights).items()})
    print(f"{weights}: {weights.stat().st_size} bytes, {sum(p.numel() for p in model.parameters())} parameters")
    show("10,000 test images", evaluate(model, *test))
    show("their affine views", evaluate(model, *test, share=1.0))
    show("affine views of the training images", evaluate(model, images, labels, share=1.0))


if __name__ == "__main__":
    main()
