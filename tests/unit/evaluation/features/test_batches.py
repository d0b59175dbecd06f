"""Features of batches, whatever the images come from."""

import numpy as np
import pytest
import torch
from PIL import Image

from lpd.data.transforms import normalize_
from lpd.distributed import World
from lpd.evaluation.features.batches import FeatureBatch, extract
from lpd.evaluation.images.references import load_reference, open_reference
from lpd.evaluation.measures.statistics import gaussian_statistics
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels

CPU = torch.device("cpu")
BATCH = 4


@pytest.fixture(scope="module")
def originals():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (11, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def reconstruct(run_folder):
    """Images after the tokenizer. The decoder leaves channels innermost, which those of files do
    not: the extractor's convolutions must not round differently for that."""
    tokenizer = VQTokenizer.from_pretrained(run_folder / "tokenizer", CPU)

    def through(images):
        codes = tokenizer.encode(normalize_(images.float()))
        return to_pixels(tokenizer.decode(codes))

    return through


def statistics_of(batches, extractor):
    measured = FeatureBatch.concatenate(list(extract(batches, extractor, CPU)))
    return gaussian_statistics(measured.features)


def test_the_same_images_have_the_same_statistics_wherever_they_come_from(
    tmp_path, extractor, originals, reconstruct
):
    made = torch.cat([reconstruct(part) for part in originals.split(BATCH)])
    expected = statistics_of([made], extractor)  # together, as references are seen
    assert expected.covariance.trace() > 0  # not one image eleven times
    channels_last = made.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "samples.npz", arr_0=channels_last)
    (tmp_path / "folder" / "class").mkdir(parents=True)
    for number, image in enumerate(channels_last):
        Image.fromarray(image).save(tmp_path / "folder" / "class" / f"{number:02d}.png")

    def of_file(name):
        return load_reference(
            open_reference(tmp_path / name, 16, extractor),
            extractor,
            tmp_path / f"computed of {name}.npz",
            World(),
            num_workers=0,
        ).statistics

    for found in (of_file("samples.npz"), of_file("folder")):
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.covariance, expected.covariance)
    parts = statistics_of((reconstruct(part) for part in originals.split(BATCH)), extractor)
    np.testing.assert_allclose(parts.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(parts.covariance, expected.covariance, rtol=1e-3, atol=1e-9)


def test_images_are_taken_as_they_come(extractor, originals):
    """Not all of them first: a run's images would not fit memory."""
    taken = []

    def images():
        for number, part in enumerate(originals.split(BATCH)):
            taken.append(number)
            yield part

    batches = extract(images(), extractor, CPU)
    for number, part in enumerate(originals.split(BATCH)):
        batch = next(batches)
        assert taken == list(range(min(number + 2, 3)))  # the next one has been asked for
        alone = extractor(part)
        np.testing.assert_array_equal(batch.features, alone.features.numpy())
        np.testing.assert_array_equal(batch.logits, alone.logits.numpy())
    assert next(batches, None) is None
