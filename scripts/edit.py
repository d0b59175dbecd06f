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

from lpd import cli
from lpd.files import printable, sha256_of_file
from scripts.creation.edit_request import EditConfig

ENLARGED = r"image \d+ is of .* it is enlarged, as in training"


def run(config: EditConfig) -> None:
    """Make the edits and write all files.

    Raises:
        InputError: a model, image, mask, class or option that does not exist or fit.
    """
    # After the flags: these import torch, which takes seconds.
    from lpd.data.images import read_upright
    from scripts.creation.editing import edit, options_of
    from scripts.creation.files import (
        IMAGES_FOLDER,
        check_folder,
        replacing,
        write_picture,
        write_single,
    )
    from scripts.creation.loading import load
    from scripts.pictures.montage import montage
    from scripts.pictures.regions import shown_on

    config.check_quickstart()
    image = read_upright(config.image_file)
    loaded = load(config)
    check_folder(config.output_dir)
    side = loaded.pipeline.img_size
    if min(image.size) < side:
        cli.warn(
            f"{printable(config.image_file)} is of {image.width} x {image.height} pixels, smaller "
            f"than the {side} x {side} that are used: it is enlarged, as in training"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=ENLARGED)  # of every edit: it was told already
        edited = edit(config, loaded, image)
    count = config.num_images_per_label
    settings = {
        "mode": config.mode,
        "image": config.image_file,
        "image_sha256": sha256_of_file(config.image_file),
        "mask": config.mask,
        "mask_sha256": None if config.mask is None else sha256_of_file(config.mask),
        "keep": config.share if config.mode == "variations" else None,
        "options": options_of(config, loaded),
    }
    firsts = range(0, len(edited.images), count)  # of each class
    rows = []
    for first in firsts:
        source = edited.sources[first]
        anew = shown_on(source, ~edited.known[first].reshape(edited.grid))
        rows.append([source, anew, *edited.images[first : first + count]])
    picture = montage(
        rows,
        side=min(max(side, 96), 256),
        row_captions=[loaded.name_of(edited.labels[first]) for first in firsts],
        column_captions=["image", "made anew"],
    )
    with replacing(config.output_dir) as folder:
        for index, (result, label) in enumerate(zip(edited.images, edited.labels, strict=True)):
            write_single(folder, index, result, loaded=loaded, wanted=label, more=settings)
        write_picture(folder / "edits.png", picture)
    print(
        f"{len(edited.images)} edits in {edited.edited.num_passes.max()} passes, "
        f"{edited.seconds:.1f} seconds: {config.output_dir / IMAGES_FOLDER}"
    )


def main() -> None:
    """The command."""
    config = cli.parse(EditConfig, "Edit an image.")
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
