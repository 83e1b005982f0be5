"""What `proxhpc status` shows: phase, progress, speed, workers and failures."""

from proxhpc.status.collect import Collector, QueueView, collect
from proxhpc.status.model import Status
from proxhpc.status.screen import Ticker, show_status
from proxhpc.status.view import render_status

__all__ = ["Collector", "QueueView", "Status", "Ticker", "collect", "render_status", "show_status"]
