"""What a student's card says."""

import pytest
import yaml

from distillkit import Pixels, Points, StudentGenerator, load_teacher
from distillkit.contracts.text import PromptList
from distillkit.students.artifact import save_student
from distillkit.students.card import card, with_usage, write_card
from distillkit.students.description import describe_student
from tests.models.pipelines import stable_diffusion
from tests.students.parts import TinyAutoencoder

PROTOCOL = {"name": "tiny", "samples": {"count": 5000}}


def measured(value, error, label="FD[tiny/pool]-5000"):
    figures = {label: {"value": value, "standard_error": error}, "KID": {"value": 9.0, "standard_error": None}}
    return {"label": label, "figures": figures, "protocol": PROTOCOL, "protocol_id": "p1-0123"}


def record_of(*records, **changes):
    rows = [
        {"name": f"generator {k}", "nfe": 35 if k else None, "images_per_second": 1234.5, "record": record}
        for k, record in enumerate(records)
    ]
    environment = {"processor": "a processor", "threads": 1, "versions": {"torch": "2.9"}, "accelerator": None}
    return {"format": 2, "kind": "run", "rows": rows, "environment": environment, "health": {}, **changes}


def test_figures_with_their_errors_and_protocol(teacher_of, student_of, tmp_path):
    description = student_of(teacher_of(), remarks=("trained with LPIPS",)).description
    record = record_of(
        measured(0.0051234, 0.00031), measured(3.14159265, None), None, health={"gap": "ok"},
        selection={"evaluated": 8, "best_step": 12000, "best_value": 0.1},
    )  # fmt: skip
    write_card(tmp_path / "README.md", description, record)
    text = (tmp_path / "README.md").read_text()
    assert "| generator 0 | 0.00512 ± 0.00031 |  | 1,234 |" in text
    assert "| generator 1 | 3.1416 | 35 | 1,234 |" in text and "| generator 2 | not measured | 35 |" in text
    expected = (
        "FD[tiny/pool]-5000", "p1-0123", "5,000 samples", "Fréchet", "gap ok", "trained with LPIPS", "12,000",
        "1 network evaluation(s)", "3 classes", "load_student", "(64, 1, 4, 4) uint8", "![samples]",
    )  # fmt: skip
    for said in expected:
        assert said in text, said


@pytest.mark.parametrize(
    ("error", "shown"), [(12.0, "345 ± 12"), (1.25, "345.0 ± 1.2"), (0.04, "345.000 ± 0.040"), (0.0, "345")]
)
def test_figures_have_the_digits_that_their_errors_allow(teacher_of, student_of, error, shown):
    text = card(student_of(teacher_of()).description, record_of(measured(345.0, error)))
    assert f"| {shown} |" in text


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"shape": (2,), "codec": Points()}, ("points of 2 numbers", "(64, 2) float32")),
        ({"shape": (1, 5, 4, 4), "codec": Pixels(video=True)}, ("4 x 4 videos of 5 frames", "(64, 1, 5, 4, 4) uint8")),
        ({"shape": (4, 4, 4), "codec": TinyAutoencoder()}, ("8 x 8 images with 3", "(64, 3, 8, 8) uint8")),
    ],
)
def test_what_the_samples_are(teacher_of, student_of, parts, said):
    text = card(student_of(teacher_of(**parts)).description)
    assert all(words in text for words in said) and "No figure" in text and "![samples]" not in text


def test_unmeasured_runs_and_unconditional_students_say_so(teacher_of, student_of):
    text = card(student_of(teacher_of(classes=0)).description, record_of(None))
    assert "no protocol" in text and "conditioned" not in text and "p1-" not in text


def test_another_usage_takes_the_place_of_the_first(teacher_of, student_of):
    text = card(student_of(teacher_of()).description)
    other = with_usage(text, "use it so \\1", library="other")
    assert "load_student" not in other and "use it so \\1" in other and "library_name: other" in other
    assert with_usage(with_usage(text, "once", library="a"), "use it so \\1", library="other") == other
    assert with_usage("# bare", "use it so", library="other").startswith("# bare\n\nuse it so")


def test_text_of_a_teachers_file_is_no_markup(teacher_of, student_of):
    hostile = "x](http://a) ![y](http://b) <script>\n# Big\n| a | <!-- usage --> `c` &lt; __d__ https://h/a_b?c=1&d=2"
    plain = student_of(teacher_of(), remarks=(hostile,)).description
    teacher = plain.teacher.model_copy(update={"licence": hostile, "source": hostile})
    description = plain.model_copy(update={"teacher": teacher, "method": "a, b]: {c"})
    text = card(description)
    lines = [line for line in text.splitlines() if "http://a" in line]
    assert len(lines) == 3 and all(line.startswith("- ") and line.count("https://h/a_b?c=1&d=2") == 1 for line in lines)
    assert text.count("<!-- usage -->") == 1 and "<script>" not in text and r"\|" in lines[0] and r"\`c" in lines[0]
    assert all(sign not in text.replace("\\" + sign, "") for sign in ("](", "__d", "[y"))
    assert yaml.safe_load(text.split("---")[1])["tags"][-1] == "a, b]: {c"


def test_a_student_of_text_shows_its_prompts(tmp_path, monkeypatch):
    teacher = load_teacher(str(stable_diffusion(tmp_path / "teacher")))
    texts = PromptList.of(["x" * 300, "say \"```\" and 'a cat'"], "words.txt")
    teacher.conditioner = teacher.conditioner.with_prompts(texts)
    generator = StudentGenerator.from_teacher(teacher)
    described = describe_student(generator, teacher, method="kd", method_package="kd 1", guidance=3.0)
    folder = tmp_path / "path" / "to" / "this" / "folder"
    save_student(folder, generator, described)
    text = card(described, record_of(None, config={"prompts": {"path": "/home/someone/words.txt"}}))
    assert f"Prompts: words.txt (sha256 `{texts.sha256[:16]}`)" in text and "/home" not in text.split("Teacher:")[0]
    assert "Guidance weight learnt in: 3." in text
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == "text-to-image"
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(text.partition("```python\n")[2].partition("\n```\n<!-- end")[0], scope)
    assert scope["samples"].shape == (4, 3, 16, 16) and "(4, 3, 16, 16) uint8" in text
    assert "hf:org/words" in card(described, record_of(None, config={"prompts": {"path": "hf:org/words"}}))
