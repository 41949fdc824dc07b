"""Video: frames by time, captions and answers along a film.

>>> clip = open_clip("clip.mp4")
>>> for frame in clip.frames(every_s=5): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.video.asking import Video as Video
    from paligemma.video.clip import Clip as Clip
    from paligemma.video.clip import ClipInfo as ClipInfo
    from paligemma.video.clip import Frame as Frame
    from paligemma.video.clip import open_clip as open_clip
    from paligemma.video.decoding import ClipLimits as ClipLimits
    from paligemma.video.segment import FrameTime as FrameTime
    from paligemma.video.segment import VideoSegment as VideoSegment
    from paligemma.video.subtitles import to_json_lines as to_json_lines
    from paligemma.video.subtitles import to_srt as to_srt
    from paligemma.video.subtitles import to_vtt as to_vtt
    from paligemma.video.tracker import TrackerOptions as TrackerOptions
    from paligemma.video.tracking import TrackOptions as TrackOptions
    from paligemma.video.tracks import Track as Track
    from paligemma.video.tracks import TrackBox as TrackBox
    from paligemma.video.tracks import TrackedFrame as TrackedFrame
    from paligemma.video.tracks import Tracks as Tracks
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
