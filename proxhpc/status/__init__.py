"""Look at a run: its phase, progress, speed, workers and failures."""

from proxhpc.status.collect import Collector, QueueView, collect
from proxhpc.status.model import Status
from proxhpc.status.screen import Ticker, show
from proxhpc.status.view import render

__all__ = ["Collector", "QueueView", "Status", "Ticker", "collect", "render", "show"]
