"""What whole evaluations leave, for tests."""


def without_times(results):
    timed = {
        *("seconds_per_image", "share_elsewhere", "latency_seconds", "images_per_second"),
        *("latency_spread", "throughput_spread", "flip_rate", "flip_images", "speed_device"),
        *("generator_seconds", "extractor_seconds", "wall_seconds"),
    }
    return [{k: v for k, v in result.flat().items() if k not in timed} for result in results]


def chunk_files(config):
    return {path: path.stat().st_mtime_ns for path in config.output_dir.glob("*/chunks/*.npz")}


def chunk_file(folder, start, stop):
    return folder / "chunks" / f"chunk_{start:08d}_{stop:08d}.npz"


BASE = {"order": ("raster",), "generation_steps": (4,)}
