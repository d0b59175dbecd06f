"""Edit an image: generate a part of it anew, as its own class or another, or continue it.

python scripts/edit.py

That fills in the lower half of one of the quickstart's held-out digits, as several classes. Of an
own image, with a published model:

python scripts/edit.py --model mit-han-lab/lpd_l_256 --recommended 20 --image dog.png \
    --mask painted.png --labels "golden retriever" "tabby cat" --feather 16

edits.png      a row per class: the image, what is generated anew, the results
images/*.png   the results one by one; each tells its settings in a text chunk
               (scripts.pictures.png_settings.read_settings)
"""

import warnings
from typing import Any

from lpd import cli
from lpd.files import printable, sha256_of_file
from lpd.options import flatten
from scripts.creation.edit_request import EditConfig


def run(config: EditConfig) -> None:
    """Make the edits and write all files.

    Raises:
        InputError: a model, image, mask, class or option that does not exist or fit.
    """
    # After the flags: these import torch, which takes seconds.
    from lpd.data.images import read_image
    from lpd.pipeline import to_images
    from scripts.creation.editing import edit
    from scripts.creation.files import IMAGES_FOLDER, write_picture, write_single
    from scripts.creation.loading import load
    from scripts.pictures.montage import montage
    from scripts.pictures.regions import shown_on

    config.check_quickstart()
    image = read_image(config.image_file)
    loaded = load(config)
    side = loaded.pipeline.img_size
    if min(image.size) < side:
        cli.warn(
            f"{printable(config.image_file)} is of {image.width} x {image.height} pixels, smaller "
            f"than the {side} x {side} that are used: it is enlarged, as in training"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the same, said of every edit
        edited = edit(config, loaded, image)
    folder, count = config.output_dir, config.num_images_per_label
    labels = loaded.pipeline.classes.labels(config.wanted)
    images = to_images(edited.images)
    settings = _settings(config)
    rows = []
    for number, label in enumerate(labels):
        results = range(number * count, (number + 1) * count)
        for index in results:
            write_single(folder, index, images[index], loaded=loaded, label=label, more=settings)
        source = to_images(edited.sources[results[:1]])[0]
        anew = ~edited.known[results[0]].reshape(edited.grid)
        rows.append([source, shown_on(source, anew), *(images[index] for index in results)])
    picture = montage(
        rows,
        side=min(max(side, 96), 256),
        row_captions=[loaded.name_of(label) for label in labels],
        column_captions=["image", "made anew"],
    )
    write_picture(folder / "edits.png", picture)
    print(f"{len(images)} edits in {edited.num_passes.max()} passes: {folder / IMAGES_FOLDER}")


def _settings(config: EditConfig) -> dict[str, Any]:
    """What is asked of every edit beside what is asked of every image."""
    own = {name: getattr(config, name) for name in ("mode", "mask")}
    return {
        **own,
        "keep": config.share if config.mode == "variations" else None,
        "image": config.image_file,
        "image_sha256": sha256_of_file(config.image_file),
        "mask_sha256": None if config.mask is None else sha256_of_file(config.mask),
        **flatten(config.outpainting),
        **flatten(config.editing),
    }


def main() -> None:
    """The command."""
    config = cli.parse(EditConfig, "Edit an image.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
