"""Rows, folders and published layouts as clips with what is said of them; nothing is decoded for it."""

import json

import pytest

from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.data.video.clips import Clip


@pytest.fixture
def touch(tmp_path):
    """touch("a.mp4", …) -> the folder with files of these names."""

    def write(*names, folder=tmp_path / "data"):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
        return folder

    return write


def everything(data):
    return [*data.train, *data.validation]


def of(clips):
    return {clip.path.name: clip.captions for clip in clips}


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_rows_of_a_path_and_a_caption_several_for_a_video(touch, ending):
    folder = touch("clips/a.mp4", "clips/b.MP4")
    rows = [("clips/a.mp4", "one"), ("clips/b.MP4", "two"), ("clips/a.mp4", "three"), ("clips/gone.mp4", "four")]
    if ending == "jsonl":
        text = "".join(json.dumps({"video": video, "caption": caption}) + "\n" for video, caption in rows)
    else:
        comma = "\t" if ending == "tsv" else ","
        text = "".join(comma.join(row) + "\n" for row in [("video", "caption"), *rows])
    path = folder / f"clips.{ending}"
    path.write_text(text)
    data = open_data(path)
    assert data.kind == "videos"
    assert of(everything(data)) == {"a.mp4": ("one", "three"), "b.MP4": ("two",)}
    assert data.train
    assert data.validation
    assert data.dropped == 1
    left_out = f"1 rows without their video left out (line {4 if ending == 'jsonl' else 5})"
    assert data.describe().endswith(f"1 to train on, 1 to choose by, tested on the same; {left_out}")
    assert "videos with captions" in data.describe()
    assert data.as_videos() is data
    assert set(data.words.split()) <= {"one", "two", "three"}


def test_columns_stretches_questions_and_lists(touch):
    folder = touch("a.mp4", "b.mp4")
    rows = [
        {"where": "a.mp4", "asked": "what colour", "said": "red", "start": 1, "end": "2.5"},
        {"where": "a.mp4", "asked": "how many", "said": 2, "start": 1, "end": "2.5"},
        {"where": "b.mp4", "asked": "who", "said": ""},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (clip,) = everything(open_data(folder / "rows.jsonl", ("where", "asked", "said")))
    assert (clip.start, clip.end) == (1.0, 2.5)
    assert clip.questions == (("what colour", "red"), ("how many", "2"))
    row = {"video": str(folder / "b.mp4"), "captions": ["a", " b ", ""], "frame_captions": ["first", "second"]}
    (folder / "lists.jsonl").write_text(json.dumps(row) + "\n")
    (clip,) = everything(open_data(folder / "lists.jsonl"))
    assert (clip.captions, clip.frame_captions) == (("a", "b"), ("first", "second"))


def test_parts_are_told_by_name_and_no_video_is_in_two(touch):
    folder = touch(*(f"{number}.mp4" for number in range(40)))
    for name, numbers in (("train", range(30)), ("val", range(30, 35)), ("test", range(35, 40))):
        lines = [f"{number}.mp4,caption {number}\n{number}.mp4,again {number}\n" for number in numbers]
        (folder / f"{name.replace('val', 'validation')}.csv").write_text("video,caption\n" + "".join(lines))
    data = open_data(folder)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 5, 5]
    assert data.has_test
    held = open_data(folder / "train.csv")
    assert len(held.validation) == 2
    assert not {clip.path for clip in held.train} & {clip.path for clip in held.validation}
    assert len(held.to_evaluate) == 30


def test_a_folder_of_videos(touch):
    folder = touch("a_dog.mp4", "b.mkv", "jumping jack/c.webm", "jumping jack/d.webm", "notes.md")
    (folder / "b.txt").write_text("a cat sits\n\nit sleeps\n")
    assert of(everything(open_data(folder))) == {
        "a_dog.mp4": ("a dog",), "b.mkv": ("a cat sits", "it sleeps"), "c.webm": ("jumping jack",),
        "d.webm": ("jumping jack",),
    }  # fmt: skip
    split = touch("train/run/a.mp4", "test/run/b.mp4", folder=folder.with_name("split"))
    data = open_data(split)
    assert (of(data.train), of(data.test)) == ({"a.mp4": ("run",)}, {"b.mp4": ("run",)})


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([{"video": "gone.mp4", "caption": "a"}], None, "none of the videos of '.*' is there, such as .*gone.mp4"),
        ([{"video": "a.mp4", "other": "a"}], None, "say which are the video and its caption"),
        ([{"video": "a.mp4", "caption": " "}], None, "nothing is said of any video"),
        (
            [{"video": "a.mp4", "caption": "a", "start": "soon"}],
            None,
            "line 1 of .* a start or an end that is no number",
        ),
        ([{"video": "a.mp4", "caption": "a"}], ("video", "words"), "has no column 'words'"),
    ],
)
def test_what_is_wrong_is_one_sentence(touch, rows, columns, said):
    folder = touch("a.mp4")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AbridgedError, match=said):
        open_data(folder / "rows.jsonl", columns)


def test_other_data_say_what_they_are_and_are_not(touch, text, tmp_path):
    with pytest.raises(AbridgedError, match="videos are wanted"):
        open_data(text).as_videos()
    with pytest.raises(AbridgedError, match="holds videos, and pairs are wanted"):
        open_data(touch("a.mp4")).as_pairs()
    (tmp_path / "rows.csv").write_text("path,text\nfile.txt,words\n")
    assert open_data(tmp_path / "rows.csv").kind == "rows"


def test_msr_vtt(touch):
    folder = touch("videos/video1.mp4", "videos/video7.mp4", "videos/video9.mp4")
    sentences = [{"video_id": f"video{i}", "caption": f"caption {i} {k}"} for i in (1, 7, 9) for k in "ab"]
    videos = [{"video_id": f"video{i}", "split": split} for i, split in ((1, "train"), (7, "validate"), (9, "test"))]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    data = open_data(folder)
    assert of(data.train) == {"video1.mp4": ("caption 1 a", "caption 1 b")}
    assert of(data.validation) == {"video7.mp4": ("caption 7 a", "caption 7 b")}
    assert of(data.test) == {"video9.mp4": ("caption 9 a", "caption 9 b")}
    for comma in ",;":  # both are in use
        lines = ["key,vid_key,video_id,sentence", "ret0,msr9,video9,one sentence"]
        (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(lines).replace(",", comma) + "\n")
        data = open_data(folder)
        assert of(data.test) == {"video9.mp4": ("one sentence",)}
        assert {*of(data.train), *of(data.validation)} == {"video1.mp4", "video7.mp4"}
    assert of(everything(open_data(folder / "MSRVTT_JSFUSION_test.csv"))) == {"video9.mp4": ("one sentence",)}


def test_msvd_didemo_and_qvhighlights(touch):
    folder = touch("msvd/x_0_10.avi", "didemo/1@N_2.mp4", "qv/NUs_60.0_210.0.mp4")
    (folder / "msvd" / "train.json").write_text(json.dumps([{"caption": ["a", "b"], "id": "x_0_10.avi"}]))
    assert of(everything(open_data(folder / "msvd"))) == {"x_0_10.avi": ("a", "b")}

    times = [[4, 4], [2, 3], [4, 4], [2, 3], [0, 0]]
    one = {"num_segments": 6, "description": "a bug", "times": times, "video": "1@N_2.m4v", "annotation_id": 1}
    two = {**one, "description": "a rock", "times": [[0, 1]], "annotation_id": 2}
    (folder / "didemo" / "test_data.json").write_text(json.dumps([one, two]))
    data = open_data(folder / "didemo")
    assert [(clip.captions, clip.moments) for clip in everything(data)] == [
        (("a bug",), ((20.0, 25.0),)), (("a rock",), ((0.0, 10.0),)),
    ]  # fmt: skip
    assert everything(data.paragraphs()) == [Clip(folder / "didemo" / "1@N_2.mp4", ("a bug a rock",))]

    rows = [
        {
            "qid": i,
            "query": f"query {i}",
            "duration": 150,
            "vid": "NUs_60.0_210.0",
            "relevant_windows": [[82, 150], [i, 9]],
        }
        for i in (1, 2)
    ]
    (folder / "qv" / "highlight_val_release.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = everything(open_data(folder / "qv"))
    assert [clip.captions for clip in found] == [("query 1",), ("query 2",)]
    assert found[0].moments == ((82.0, 150.0), (1.0, 9.0))


def test_a_layout_with_a_hole_is_one_sentence(touch):
    folder = touch("x.avi")
    (folder / "train.json").write_text(json.dumps([{"caption": ["a"], "id": "x.avi"}, {"caption": ["b"]}]))
    with pytest.raises(AbridgedError, match=r"cannot read the videos of .*train.json: KeyError 'id'"):
        open_data(folder)
