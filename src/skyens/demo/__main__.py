"""Command line of the demo: `python -m skyens.demo`."""

import argparse

from skyens.demo._run import Settings, run


def main() -> None:
    """Parse the arguments and run the demo."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m skyens.demo",
        description="Forecast 500 hPa height for 36 hours from the real ERA5 analyses "
        "of 2017-01-01 00 UTC with two ensembles, one of physics and one learned; "
        "assimilate heights at real radiosonde stations at 12 hours; verify against "
        "the analyses that followed; write the forecast, a scorecard and pictures.",
    )
    parser.add_argument(
        "--members", type=int, default=default.members, help="a multiple of 20 (100)"
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="same seed, same numbers (0)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=default.epochs,
        help=f"of training the learned step ({default.epochs})",
    )
    parser.add_argument(
        "--output",
        default=default.output,
        help="folder for what it writes; a second run reuses the trained network "
        f"found there ({default.output})",
    )
    try:
        settings = Settings(**vars(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))
    run(settings)


if __name__ == "__main__":
    main()
