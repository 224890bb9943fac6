"""The recipes of docs/scale.md, run as they stand there with the demo model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SHOW = """
import json
import pyarrow.parquet as pq
print(json.dumps({name: pq.read_table(name, columns=["id", "text", "error"]).sort_by("id").to_pylist()
                  for name in ("captions.parquet", "captions")}))
"""


def test_the_recipes_give_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, colour in enumerate(("red", "blue", "grey")):
        Image.new("RGB", (60, 60), colour).save(photos / f"{'abc'[number]}.png")
    paths = [f"photos/{name}.png" for name in ("a", "gone", "b", "c")]
    pq.write_table(pa.table({"id": ["1", "2", "3", "4"], "path": paths}), tmp_path / "media.parquet")
    code = "\n".join([*blocks, SHOW]).replace(
        "ray.init(", "ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, "
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("photos/a.png A ")
    assert lines[1] == "photos/gone.png no such file"
    found = json.loads(lines[-1])
    assert found["captions"] == found["captions.parquet"]
    assert [row["error"] for row in found["captions"]] == [None, "no such file", None, None]
    assert len({row["text"] for row in found["captions"] if row["text"]}) == 3
