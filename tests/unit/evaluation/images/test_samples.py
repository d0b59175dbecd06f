"""Images of any model: the numbers of an evaluation from its own exports, and what is refused."""

import functools
import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lpd.data.images import read_image
from lpd.distributed import World
from lpd.evaluation.features.extractors import load_feature_extractor
from lpd.evaluation.generated.setting import EvalConfig
from lpd.evaluation.generated.sweep import run_evaluation
from lpd.evaluation.images import parts, samples
from lpd.evaluation.images.modes import SamplesConfig
from lpd.evaluation.images.results import find_duplicates
from lpd.options import from_flat


@pytest.fixture(scope="module")
def evaluation(run_folder, tmp_path_factory):
    """An evaluation's numbers, and the folder of its only setting."""
    output = tmp_path_factory.mktemp("evaluation")
    config = from_flat(
        EvalConfig,
        {
            "pretrained_ckpt": run_folder / "model", "vqgan_path": run_folder / "tokenizer",
            "output_dir": output, "img_size": 16, "num_images": 24, "order": ("lpd",),
            "generation_steps": (4,), "feature_extractor": str(run_folder / "classifier"),
            "reference": run_folder / "data", "num_workers": 0, "device": "cpu",
            "save_images": True, "save_npz": True,
        },
    )  # fmt: skip
    (result,) = run_evaluation(config, World())
    return result, output / "lpd_4"


@pytest.fixture
def make_config(run_folder, tmp_path):
    def make(source, **changes):
        values = {
            "samples": source, "output_dir": tmp_path / "out", "num_workers": 0, "device": "cpu",
            "feature_extractor": str(run_folder / "classifier"), "reference": run_folder / "data",
        }  # fmt: skip
        return from_flat(SamplesConfig, {**values, **changes})

    return make


@pytest.fixture
def folder(tmp_path):
    """30 different images of 16 pixels, 00.png to 29.png."""
    path = tmp_path / "samples"
    path.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(30, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{number:02d}.png")
    return path


def pixels_of(folder):
    return np.stack([np.asarray(read_image(path)) for path in sorted(folder.rglob("*.png"))])


class TestExports:
    @pytest.mark.parametrize("source", ["images", "samples.npz", "compressed.npz", "classes"])
    def test_of_an_evaluation_give_its_numbers(self, evaluation, make_config, tmp_path, source):
        result, exported = evaluation
        labels = np.arange(24) % 3  # of the images of a run
        path, order = exported / source, np.arange(24)
        if source == "compressed.npz":
            path = tmp_path / source
            np.savez_compressed(path, arr_0=pixels_of(exported / "images"), arr_1=labels)
        elif source == "classes":
            path = tmp_path / source
            for number, label in enumerate(labels):
                (path / str(label)).mkdir(parents=True, exist_ok=True)
                shutil.copy(exported / "images" / f"{number:06d}.png", path / str(label))
            order = np.argsort(labels, kind="stable")
        changes = {}
        if source == "images":
            np.save(tmp_path / "labels.npy", labels)
            changes = {"samples_labels": tmp_path / "labels.npy"}
        found = samples.run_samples(make_config(path, **changes), World())
        assert found["images"] == 24
        for name, value in result.metrics.items():
            # The inception score's splits are of images in their order.
            if "inception_score" not in name or order[1] == 1:
                close = value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
                assert found["metrics"][name] == close, name
        assert found["pixels"] == result.pixels_sha256 or order[1] != 1

    def test_tell_classes_by_a_classifier_beside_the_extractor(
        self, evaluation, make_config, make_classifier, run_folder, tmp_path
    ):
        result, exported = evaluation
        torch.manual_seed(9)
        make_classifier().save(tmp_path / "judge")
        own = {"classifier": str(run_folder / "classifier"), "output_dir": tmp_path / "own"}
        path = exported / "samples.npz"
        found = samples.run_samples(make_config(path, **own), World())
        assert found["metrics"]["class_accuracy"] == result.metrics["class_accuracy"]
        assert found["settings"]["classifier"] == found["settings"]["feature_extractor"]
        by_class = (exported / "class_accuracy.json").read_text()
        assert (tmp_path / "own" / "class_accuracy.json").read_text() == by_class

        judged = make_config(path, classifier=str(tmp_path / "judge"))
        found = samples.run_samples(judged, World())
        judge = load_feature_extractor(str(tmp_path / "judge"), torch.device("cpu"))
        pixels = torch.from_numpy(pixels_of(exported / "images").transpose(0, 3, 1, 2).copy())
        right = judge(pixels).logits.argmax(1).numpy() == np.arange(24) % 3
        assert found["metrics"]["class_accuracy"] == right.mean()
        assert found["metrics"]["fid"] == pytest.approx(result.metrics["fid"], rel=1e-4)
        with pytest.raises(ValueError, match="classifier was classifier"):
            samples.run_samples(make_config(path), World())

    def test_without_labels_have_no_accuracy(self, evaluation, make_config):
        _, exported = evaluation
        found = samples.run_samples(make_config(exported / "images"), World())
        assert found["metrics"]["class_accuracy"] is None
        assert found["metrics"]["fid"] is not None


@given(st.lists(st.sampled_from(["a\0", "\0b", "ab", "\0\0"]), min_size=1, max_size=12))
def test_duplicates_are_those_that_came_before(digests):
    found = find_duplicates(np.array([list(digest.encode()) for digest in digests], np.uint8))
    again = [row for row, digest in enumerate(digests) if digest in digests[:row]]
    assert found.count == len(again)
    if again:
        assert found.example == (digests.index(digests[again[0]]), again[0])


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(
    folder, make_config, in_threads, monkeypatch, tmp_path, size
):
    monkeypatch.setattr(parts, "BLOCK_IMAGES", 8)
    alone = samples.run_samples(make_config(folder), World())
    config = make_config(folder, output_dir=tmp_path / "together")
    found = in_threads(lambda world: samples.run_samples(config, world), size)
    assert found == [alone] * size
    assert json.loads((tmp_path / "together" / "results.json").read_text()) == alone


class TestResuming:
    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr(parts, "BLOCK_IMAGES", 8)

    @pytest.fixture
    def seen(self, monkeypatch):
        """The number of images of every block that an extractor looks at."""
        seen, extraction = [], parts.Extraction

        def counting(pixels, extractor):
            seen.append(len(pixels))
            return extraction(pixels, extractor)

        monkeypatch.setattr(parts, "Extraction", counting)
        return seen

    def test_goes_on_from_what_was_seen(self, folder, make_config, monkeypatch, seen, tmp_path):
        make_config = functools.partial(make_config, folder, reference=None)
        whole = samples.run_samples(make_config(output_dir=tmp_path / "whole"), World())
        assert seen == [8, 8, 8, 6]
        seen.clear()
        write, written = parts.PartFolder.save, []

        def fail_at_the_third(self, part, arrays):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(part)
            write(self, part, arrays)

        monkeypatch.setattr(parts.PartFolder, "save", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            samples.run_samples(make_config(), World())
        monkeypatch.setattr(parts.PartFolder, "save", write)
        seen.clear()
        assert samples.run_samples(make_config(), World()) == whole
        assert seen == [8, 6]
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"settings.json", "results.json"}

    def test_what_is_complete_is_not_seen_again(self, folder, make_config, seen):
        first = samples.run_samples(make_config(folder), World())
        seen.clear()
        assert samples.run_samples(make_config(folder), World()) == first
        assert seen == []

    def test_other_images_are_refused(self, folder, make_config):
        samples.run_samples(make_config(folder), World())
        Image.new("RGB", (16, 16)).save(folder / "03.png")
        with pytest.raises(ValueError, match=r"samples was folder .*give another --output_dir"):
            samples.run_samples(make_config(folder), World())

    def test_parts_of_other_images_are_seen_anew(self, folder, make_config, tmp_path, seen):
        config = make_config(folder)
        samples.run_samples(config, World())
        expected = samples.run_samples(config, World())
        for name in ("results.json", "settings.json"):
            (tmp_path / "out" / name).unlink()
        stray = tmp_path / "out" / "parts" / "part_00000.npz"
        stray.parent.mkdir()
        np.savez(stray, origin=np.array("another"), features=np.zeros((8, 8)))
        assert samples.run_samples(config, World()) == expected


class TestRefused:
    def refuse(self, config, message):
        with pytest.raises(ValueError, match=message):
            samples.run_samples(config, World())

    def test_nothing(self, make_config, tmp_path):
        self.refuse(make_config(tmp_path / "absent"), "there is nothing at .*absent")
        (tmp_path / "empty").mkdir()
        self.refuse(make_config(tmp_path / "empty"), "holds neither images")

    @pytest.mark.parametrize("suffix", ["jpg", "png"])  # whatever it is called
    def test_jpeg_unless_it_is_allowed(self, folder, make_config, suffix):
        content = io.BytesIO()
        Image.new("RGB", (16, 16), (9, 200, 70)).save(content, "JPEG")
        (folder / f"30.{suffix}").write_bytes(content.getvalue())
        self.refuse(make_config(folder), rf"30\.{suffix} is a JPEG file, .*--allow_jpeg")
        found = samples.run_samples(make_config(folder, allow_jpeg=True), World())
        assert found["images"] == 31

    def test_mixed_sizes(self, folder, make_config):
        Image.new("RGB", (17, 16)).save(folder / "12.png")
        self.refuse(make_config(folder), r"12\.png has 17 x 16 pixels, where 16 x 16 are expected")

    def test_another_size_than_was_asked_for(self, folder, make_config, tmp_path):
        self.refuse(make_config(folder, img_size=32), "where 32 x 32 are expected")
        np.savez(tmp_path / "a.npz", arr_0=pixels_of(folder))
        self.refuse(make_config(tmp_path / "a.npz", img_size=32), "16 pixels, and img_size is 32")

    def test_images_that_are_not_square(self, make_config, tmp_path):
        np.savez(tmp_path / "a.npz", arr_0=np.zeros((4, 8, 12, 3), np.uint8))
        self.refuse(make_config(tmp_path / "a.npz"), "not square, but 12 x 8 pixels")

    @pytest.mark.parametrize("content", [b"", b"no image", "half"])
    def test_unreadable_images(self, folder, make_config, content):
        path = folder / "07.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
        self.refuse(make_config(folder), r"cannot read the image .*07\.png")

    def test_other_numbers_of_images_than_were_asked_for(self, folder, make_config):
        self.refuse(make_config(folder, num_images=31), "holds 30 images, and num_images is 31")

    def test_one_image(self, make_config, tmp_path):
        (tmp_path / "one").mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / "one" / "0.png")
        self.refuse(make_config(tmp_path / "one"), "holds one image")

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.arange(30), "labels from 0 to 29, but the classifier tells 3 classes"),
            (np.arange(29) % 3, "an integer for each of the 30 images"),
            (np.zeros(30), "an integer for each"),
        ],
    )
    def test_labels_that_are_not_the_images(self, folder, make_config, tmp_path, labels, message):
        np.save(tmp_path / "labels.npy", labels)
        self.refuse(make_config(folder, samples_labels=tmp_path / "labels.npy"), message)

    def test_labels_that_are_no_array(self, folder, make_config, tmp_path):
        config = make_config(folder, samples_labels=tmp_path / "labels.npy")
        self.refuse(config, "there are no labels at")
        (tmp_path / "labels.npy").write_text("1 2 3")
        self.refuse(config, "is no .npy of labels")

    def test_images_that_change_while_they_are_measured(self, folder, make_config, monkeypatch):
        make = samples.make_parts

        def make_and_write(*arguments, **options):
            make(*arguments, **options)
            Image.new("RGB", (16, 16)).save(folder / "30.png")

        monkeypatch.setattr(samples, "make_parts", make_and_write)
        self.refuse(make_config(folder), "changed while it was measured")


class TestTold:
    """On standard error, and in the results."""

    def warnings(self, config, said):
        found = samples.run_samples(config, World())
        text = said()
        for warning in found["warnings"]:
            assert " ".join(warning.split()) in text
        return found, " ".join(found["warnings"])

    def test_nothing_where_all_is_well(self, folder, make_config, said):
        assert self.warnings(make_config(folder), said)[1] == ""

    def test_duplicates(self, folder, make_config, said):
        shutil.copy(folder / "04.png", folder / "21.png")
        image = read_image(folder / "04.png")
        image.save(folder / "22.png", compress_level=1)  # other bytes, the same pixels
        found, text = self.warnings(make_config(folder), said)
        assert found["duplicates"] == 2
        assert "2 of 30 images repeat another one exactly: 21.png repeats 04.png" in text

    def test_files_that_are_no_images_and_those_under_way(self, folder, make_config, said):
        (folder / "notes.txt").write_text("of mine")
        name = f".000030.{'0' * 32}.png"
        (folder / name).write_bytes(b"under way")
        found, text = self.warnings(make_config(folder), said)
        assert found["passed_over"] == 2
        assert "2 files beside the images are no images" in text
        assert "1 files look as if they were being written" in text
        assert name in text

    def test_missing_numbers(self, folder, make_config, said):
        (folder / "17.png").unlink()
        assert "number 17 is missing" in self.warnings(make_config(folder), said)[1]

    def test_a_missing_reference(self, folder, make_config, said):
        found, text = self.warnings(make_config(folder, reference=None), said)
        assert "no --reference" in text
        assert found["metrics"]["fid"] is None

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("a", "b"), "2 class folders, but the classifier tells 3 classes"),
            (("2", "10", "1"), "sorted order is not that of their values"),
        ],
    )
    def test_classes_that_are_not_the_extractors(self, folder, make_config, said, names, message):
        for number, path in enumerate(sorted(folder.iterdir())):
            target = folder / names[number % len(names)]
            target.mkdir(exist_ok=True)
            path.rename(target / path.name)
        found, text = self.warnings(make_config(folder), said)
        assert message in text
        assert found["metrics"]["class_accuracy"] is None

    def test_fewer_images_than_published_numbers_are_of(
        self, folder, make_config, said, monkeypatch, extractor
    ):
        monkeypatch.setattr(samples, "load_feature_extractor", lambda *_arguments: extractor)
        text = self.warnings(make_config(folder, feature_extractor="inception"), said)[1]
        assert "FID of 30 images" in text
        assert "published numbers, which are of 50000" in text
