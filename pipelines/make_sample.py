"""Write the embedded 1 % sample of Fashion-MNIST: 600 training and 2,000 test images, the same number of each class.

Usage:  python pipelines/make_sample.py [--data DIR] [--out pipelines/assets]

DIR holds the four original files `train-images-idx3-ubyte.gz` and companions (Debian: package dataset-fashion-mnist).
The same input gives the same bytes. Needs: numpy.
"""

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np

CLASSES = 10


def read_idx(path):
    """The array in a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(Path(path).read_bytes())
    zero, kind, rank = struct.unpack(">HBB", raw[:4])
    if (zero, kind) != (0, 8):
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes (starts with {raw[:4].hex()})")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_idx(path, array):
    """Write `array` as a gzipped IDX file; no time stamp and no file name, so that the bytes depend on the data alone."""
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    with open(path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as packed:
        packed.write(raw)
    print(f"{path}: {list(array.shape)}, {Path(path).stat().st_size} bytes")


def balanced(labels, per_class, seed):
    """Positions of `per_class` samples of every class, in the original order."""
    rng = np.random.Generator(np.random.PCG64(seed))
    picked = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(CLASSES)]
    return np.sort(np.concatenate(picked))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for source, split, per_class in [("train", "train", 60), ("t10k", "test", 200)]:
        images = read_idx(args.data / f"{source}-images-idx3-ubyte.gz")
        labels = read_idx(args.data / f"{source}-labels-idx1-ubyte.gz")
        picked = balanced(labels, per_class, args.seed)
        write_idx(args.out / f"fashion-mnist-1pct-{split}-images-idx3-ubyte.gz", images[picked])
        write_idx(args.out / f"fashion-mnist-1pct-{split}-labels-idx1-ubyte.gz", labels[picked])


if __name__ == "__main__":
    main()
