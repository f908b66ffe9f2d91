"""Rebuild fedmem/routing/static_embed/ from sentence-transformers/all-MiniLM-L6-v2.

Recipe: model2vec.distill with 256 PCA dimensions, the first 128 columns, int8 with one scale a column.
`--compare` also holds it against the shipped table: cosines between a few texts, which the signs of PCA columns do not
move, may differ by 0.02 at most (exit code 12 otherwise).

    pip install 'model2vec[distill,quantization]==0.10.0'
    python benchmarks/make_static_table.py --out /tmp/table --compare
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fedmem.routing.embedder import StaticEmbedder

MODEL, COLUMNS = "sentence-transformers/all-MiniLM-L6-v2", 128
PROBES = [
    "a river in France",
    "blood pressure of the patient",
    "the bank raised its rate",
    "a prime number",
    "my sister",
]


def distil(model_name: str) -> tuple[NDArray[np.float32], Tokenizer]:
    """Return vectors [vocabulary, 256] and tokenizer, by model2vec."""
    from model2vec.distill import distill

    model = distill(model_name=model_name, pca_dims=256)
    return np.asarray(model.embedding, dtype=np.float32), model.tokenizer


def quantise(table_VD: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the first 128 columns as int8, and the scale of each: value = int8 * scale."""
    kept = table_VD[:, :COLUMNS]
    scale = np.maximum(np.abs(kept).max(axis=0), 1e-12).astype(np.float32) / 127
    return np.rint(kept / scale).astype(np.int8), scale


def embed(q: NDArray[np.int8], scale: NDArray[np.float32], tokenizer: Tokenizer) -> NDArray[np.float32]:
    """Return unit vectors of the probes, the slow way."""
    rows = [(q[e.ids] * scale).mean(axis=0) for e in tokenizer.encode_batch(PROBES, add_special_tokens=False)]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def compare(made_ND: NDArray[np.float32]) -> dict[str, float]:
    """Check that cosines between probes agree with the shipped table. Signs of columns do not change them."""
    shipped_ND = StaticEmbedder().embed(PROBES)
    gap = np.abs(made_ND @ made_ND.T - shipped_ND @ shipped_ND.T)
    return {"largest_cosine_difference": float(gap.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the two files to")
    parser.add_argument("--model", default=MODEL, help="name or folder of the model to distil")
    parser.add_argument("--compare", action="store_true", help="fail where the shipped table differs")
    options = parser.parse_args()
    table, tokenizer = distil(options.model)
    q, scale = quantise(table)
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out / "minilm_static_128d_int8.npz", q=q, scale=scale)
    tokenizer.save(str(options.out / "tokenizer.json"))
    result = compare(embed(q, scale, tokenizer)) if options.compare else {}
    print(json.dumps({"schema": "fedmem.benchmark.static_table/1", "data": {"rows": len(q), **result}}))
    if result and result["largest_cosine_difference"] > 0.02:
        raise SystemExit(12)


if __name__ == "__main__":
    main()
