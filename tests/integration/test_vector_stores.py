"""Shards of vectors in the stores and libraries that people search with: each finds a text by its own vector."""

import numpy as np
import pyarrow.dataset
import pytest

from abridged.embedding import embed_data
from embedders import embedder, sentences

LINES = sentences(40)
MISSING = 5


@pytest.fixture(scope="module", params=["float16", "int8", "binary"])
def shards(request, tmp_path_factory):
    """The kind and an Arrow dataset of shards, in which one vector is null."""
    where = tmp_path_factory.mktemp("stores")
    embedder(where / "model")
    (where / "a.txt").write_text("".join(("" if i == MISSING else line) + "\n" for i, line in enumerate(LINES)))
    embed_data(
        where / "model", where / "a.txt", where / "out", keep=["text"], vectors=request.param, shard_rows=15, workers=1
    )
    found = pyarrow.dataset.dataset(sorted(map(str, (where / "out").glob("*.parquet"))))
    return request.param, found


def there(dataset):
    """The rows that have a vector: their numbers (n,), vectors (n, width), and texts."""
    table = dataset.to_table(filter=pyarrow.dataset.field("vector").is_valid())
    vectors = table["vector"].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    return table["row"].to_numpy(), flat, table["text"].to_pylist()


def like(vectors, number):
    """Which vectors are the same as one: in 32 bits, some are."""
    return (vectors == vectors[number]).all(-1)


def test_faiss(shards):
    faiss = pytest.importorskip("faiss")
    kind, dataset = shards
    rows, vectors, _ = there(dataset)
    assert rows.tolist() == [i for i in range(40) if i != MISSING]
    if kind == "binary":
        index = faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(8 * vectors.shape[1]))
    else:
        vectors = vectors.astype(np.float32)
        faiss.normalize_L2(vectors)
        index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, rows)
    _, found = index.search(vectors, 1)
    assert (found[:, 0] == rows).mean() > 0.9  # in 32 bits some are alike


def test_qdrant(shards):
    qdrant = pytest.importorskip("qdrant_client")
    kind, dataset = shards
    rows, vectors, texts = there(dataset)
    made = vectors
    if kind == "binary":  # Qdrant makes bits itself
        vectors = 2.0 * np.unpackbits(vectors, axis=-1) - 1
    client = qdrant.QdrantClient(":memory:")
    size = qdrant.models.VectorParams(size=vectors.shape[1], distance=qdrant.models.Distance.COSINE)
    client.create_collection("texts", vectors_config=size)
    payload = [{"text": text} for text in texts]
    client.upload_collection("texts", vectors=vectors.astype(np.float32), ids=rows.tolist(), payload=payload)
    hit = client.query_points("texts", query=vectors[9].astype(np.float32).tolist(), limit=1).points[0]
    assert (hit.id, hit.payload["text"]) in zip(rows[like(made, 9)], np.array(texts)[like(made, 9)], strict=True)


def test_lancedb(shards, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    kind, dataset = shards
    rows, vectors, texts = there(dataset)
    some = dataset.scanner(filter=pyarrow.dataset.field("vector").is_valid())
    table = lancedb.connect(tmp_path / "db").create_table("texts", data=some.to_reader())
    assert table.count_rows() == 39
    if kind == "int8":  # Lance holds int8, and searches floats
        assert table.to_arrow()["vector"].type == dataset.schema.field("vector").type
        return
    query = vectors[9] if kind == "binary" else vectors[9].astype(np.float32)
    metric = "hamming" if kind == "binary" else "cosine"
    hit = table.search(query, vector_column_name="vector").distance_type(metric).limit(1).to_list()[0]
    assert (hit["row"], hit["text"]) in zip(rows[like(vectors, 9)], np.array(texts)[like(vectors, 9)], strict=True)
