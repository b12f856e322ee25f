"""Data sets of Hugging Face's library: which columns are images and labels, and rows that hold none."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillkit import DistillkitError, UsageError
from distillkit.data.config import DataConfig
from distillkit.data.files import open_images
from distillkit.data.reader import ImageReader
from tests.data.test_images import encoded, picture

PNG = [encoded(picture(k)) for k in range(6)]
CLASSES = datasets.ClassLabel(names=["ant", "bee"])
NUMBERS = [0, 1, 0, 1, 0, 2]


def parquet(path, columns):
    """A parquet file of plain columns, without anything of the library's in it."""
    pq.write_table(pa.table(columns), path)
    return str(path)


def saved(path, features, **columns):
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.save_to_disk(str(path))
    return str(path)


IMAGE_ROWS = [{"bytes": data, "path": None} for data in PNG]


@pytest.mark.parametrize("kind", ["bytes", "bytes and path"])
def test_plain_parquet_of_image_files(kind, tmp_path):
    path = parquet(tmp_path / "x.parquet", {"image": PNG if kind == "bytes" else IMAGE_ROWS, "label": NUMBERS})
    reader = ImageReader(DataConfig(path=path))
    assert np.array_equal(reader.pixels(3), np.asarray(picture(3))) and reader.files.labels.tolist() == NUMBERS
    assert "3 classes (0 3, 1 2, 2 1)" in reader.summary


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        (NUMBERS, NUMBERS, ()),
        (["dog", "cat", "dog", "cat", "dog", "eel"], [1, 0, 1, 0, 1, 2], ("cat", "dog", "eel")),
        ([True, False] * 3, [1, 0] * 3, ()),
    ],
)
def test_labels_that_do_not_say_so_are_labels(values, labels, names, tmp_path):
    images = open_images(parquet(tmp_path / "x.parquet", {"image": PNG, "label": values}))
    assert images.labels.tolist() == labels and images.class_names == names


def test_rows_without_an_image_are_left_out_and_said(tmp_path):
    rows = [*IMAGE_ROWS[:2], None, None, *IMAGE_ROWS[2:]]
    path = saved(
        tmp_path / "x", {"image": datasets.Image(), "label": CLASSES}, image=rows, label=[0, 1, 1, 1, 0, 1, 0, 1]
    )
    reader = ImageReader(DataConfig(path=path))
    assert len(reader) == 6 and "2 rows without an image (such as row 2)" in reader.summary
    assert reader.files.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(reader.pixels(2), np.asarray(picture(2))) and reader.files.where(2) == f"{path}, row 4"
    for empty in (None, {"bytes": None, "path": None}):
        plain = open_images(parquet(tmp_path / "x.parquet", {"image": [IMAGE_ROWS[0], empty, IMAGE_ROWS[1]]}))
        assert len(plain) == 2 and "row 1" in plain.left_out[0]
    assert len(open_images(parquet(tmp_path / "z.parquet", {"image": [PNG[0], None]}))) == 1
    with pytest.raises(UsageError, match="empty"):
        open_images(parquet(tmp_path / "y.parquet", {"image": pa.array([None, None], pa.binary())}))


def test_several_label_columns_are_a_choice(tmp_path):
    columns = {"image": IMAGE_ROWS, "coarse": [0] * 6, "fine": [0, 1] * 3}
    path = saved(tmp_path / "x", {"image": datasets.Image(), "coarse": CLASSES, "fine": CLASSES}, **columns)
    with pytest.raises(UsageError, match=r"coarse, fine.*--data-label-column"):
        open_images(path)
    reader = ImageReader(DataConfig(path=path, label_column="fine"))
    assert reader.files.labels.tolist() == [0, 1] * 3 and "(ant 3, bee 3)" in reader.summary
    assert "coarse" in reader.summary, "what is not used is said"
    with pytest.raises(UsageError, match=r"--data-label-column size.*coarse"):
        open_images(path, label_column="size")


def test_several_image_columns_are_a_choice_unless_one_is_obvious(tmp_path):
    path = parquet(tmp_path / "x.parquet", {"before": PNG, "after": PNG[::-1]})
    with pytest.raises(UsageError, match=r"before, after.*--data-image-column"):
        open_images(path)
    assert open_images(path, image_column="after").read(0) == PNG[5]
    with pytest.raises(UsageError, match=r"--data-image-column mask"):
        open_images(path, image_column="mask")
    obvious = ImageReader(DataConfig(path=parquet(tmp_path / "y.parquet", {"mask": PNG, "image": PNG})))
    assert obvious.files.column == "image" and "column image of mask, image" in obvious.summary


@pytest.mark.parametrize(
    ("values", "fragment"),
    [([0, None, 1, 1, 0, 0], "row 1"), ([0, -1, 1, 1, 0, 0], "row 1"), ([10**9, 0, 0, 0, 0, 0], "row 0")],
)
def test_wrong_labels_are_named_by_their_row(values, fragment, tmp_path):
    with pytest.raises(DistillkitError, match=r"x\.parquet, column label") as raised:
        open_images(parquet(tmp_path / "x.parquet", {"image": PNG, "label": values}))
    assert fragment in str(raised.value)


def test_numbers_with_points_are_no_labels(tmp_path):
    path = parquet(tmp_path / "x.parquet", {"image": PNG, "score": [0.5] * 6})
    with pytest.raises(UsageError, match="no labels"):
        open_images(path, label_column="score")
    assert open_images(path).labels is None


def test_a_saved_dict_of_splits(tmp_path):
    rows = datasets.Dataset.from_dict({"image": IMAGE_ROWS}, features=datasets.Features({"image": datasets.Image()}))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk(str(tmp_path / "x"))
    with pytest.raises(UsageError, match=r"train \(6 rows\), test \(2 rows\).*--data .*x/train"):
        open_images(str(tmp_path / "x"))
    assert len(open_images(str(tmp_path / "x" / "test"))) == 2
    datasets.DatasetDict({"all": rows}).save_to_disk(str(tmp_path / "y"))
    assert len(open_images(str(tmp_path / "y"))) == 6


def test_a_folder_of_parquet_files(tmp_path):
    for part in range(2):
        parquet(tmp_path / f"train-0000{part}-of-00002.parquet", {"image": PNG[:3] if part == 0 else PNG[3:]})
    images = open_images(str(tmp_path))
    assert [images.read(k) for k in range(6)] == PNG
    parquet(tmp_path / "test-00000-of-00001.parquet", {"image": PNG})
    with pytest.raises(UsageError, match="test, train"):
        open_images(str(tmp_path))


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf: "])
def test_what_cannot_be_a_name_on_the_hub_is_refused(name):
    with pytest.raises(UsageError, match="hf:ORG/NAME"):
        open_images(name)


def test_what_is_no_data_set_is_one_message(tmp_path):
    with pytest.raises(UsageError, match=r"columns: text"):
        open_images(parquet(tmp_path / "a.parquet", {"text": ["x"]}))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(DistillkitError, match=r"b\.parquet"):
        open_images(str(tmp_path / "b.parquet"))
    (tmp_path / "c").mkdir()
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / "c" / name).write_text("{")
    with pytest.raises(DistillkitError, match="/c"):
        open_images(str(tmp_path / "c"))
    with pytest.raises(UsageError, match="is for parquet files"):
        (tmp_path / "d").mkdir()
        open_images(str(tmp_path / "d"), label_column="label")


def test_a_column_of_bytes_that_are_no_images_names_the_row(tmp_path):
    with pytest.raises(DistillkitError, match=r"x\.parquet, row 0"):
        ImageReader(DataConfig(path=parquet(tmp_path / "x.parquet", {"image": [b"text"]})))
    rows = [{"bytes": None, "path": str(tmp_path / "absent.png")}]
    with pytest.raises(DistillkitError, match=r"y\.parquet, row 0"):
        ImageReader(DataConfig(path=parquet(tmp_path / "y.parquet", {"image": rows})))
