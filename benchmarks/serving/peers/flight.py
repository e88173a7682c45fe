"""The request as a pydantic model, for FastAPI."""

from pydantic import BaseModel


class Flight(BaseModel):
    """The 15 columns, in the order of `columns.COLUMNS`."""

    carrier: str
    origin: str
    dest: str
    month: int
    day: int
    weekday: int
    hour: int
    minute: int
    flight: int
    dep_time: int
    sched_dep_time: int
    sched_arr_time: int
    scheduled_minutes: int
    distance: float
    dep_delay: float
