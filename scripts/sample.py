"""Create images of classes or of prompts, and show how they came about.

python scripts/sample.py

It takes the quickstart's model by default. With a published one, in its published settings:

python scripts/sample.py --model mit-han-lab/lpd_l_256 --recommended 20 \
    --labels "golden retriever" 207 volcano

With a model of texts, by default the quickstart's:

python scripts/sample.py --prompts "a red three" "a blue eight above a yellow two"

samples.png    all images, a row per class or prompt
passes.png     the first image of each after every pass; grey is not known yet
decoding.gif   the same as an animation
decoding.mp4   the same as a video, with --video
images/*.png   the images one by one; each tells its settings in a text chunk
               (scripts.pictures.png_settings.read_settings)
"""

from lpd import cli
from scripts.creation.sample_request import SampleConfig

_MOST_SHOWN = 16  # images pass by pass


def run(config: SampleConfig) -> None:
    """Create the images and write all files.

    Raises:
        InputError: a model, class, prompt or option that does not exist or fit.
    """
    # After the flags: these import torch, which takes seconds.
    from scripts.creation.files import (
        IMAGES_FOLDER,
        check_folder,
        replacing,
        write_picture,
        write_single,
    )
    from scripts.creation.passes import MILLISECONDS, PassRecorder
    from scripts.creation.sampling import load_any
    from scripts.pictures import video
    from scripts.pictures.gif import looping_gif
    from scripts.pictures.montage import montage

    if config.video:
        video.check_can_write()
    loaded, wanted = load_any(config)
    check_folder(config.output_dir)
    pipeline, count = loaded.pipeline, config.num_images_per_label
    captions = [loaded.name_of(each) for each in wanted]
    shown = range(0, len(wanted) * count, count)[:_MOST_SHOWN]
    recorder = PassRecorder(pipeline, shown)
    result = loaded.create(wanted, recorder, shown)
    rows = [result.images[k : k + count] for k in range(0, len(result.images), count)]
    side = min(max(pipeline.img_size, 96), 256)
    with replacing(config.output_dir) as folder:
        for index, (image, each) in enumerate(zip(result.images, result.labels, strict=True)):
            write_single(folder, index, image, loaded=loaded, wanted=each)
        write_picture(folder / "samples.png", montage(rows, side=side, row_captions=captions))
        strips = recorder.strips(captions[:_MOST_SHOWN], side=min(max(pipeline.img_size, 64), 128))
        write_picture(folder / "passes.png", strips)
        frames = recorder.frames(side=side)
        write_picture(folder / "decoding.gif", looping_gif(frames, MILLISECONDS))
        if config.video:
            write_picture(folder / "decoding.mp4", video.mp4(frames, MILLISECONDS))
    print(
        f"{len(result.images)} images in {result.num_passes} passes, "
        f"{result.seconds:.1f} seconds: {config.output_dir / IMAGES_FOLDER}"
    )


def main() -> None:
    """The command."""
    about = "Create images of classes or of prompts, and show how they came about."
    config = cli.parse(SampleConfig, about)
    with cli.command():
        run(config)


if __name__ == "__main__":
    main()
