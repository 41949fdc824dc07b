"""Tell films from images and from files that name other files, by their first bytes."""

from __future__ import annotations

import re
from typing import Literal

FilmFormat = Literal["mov", "matroska", "avi"]
"""FFmpeg's names of the containers that are read: MP4 and QuickTime, Matroska and WebM, AVI."""

# Brands of ISO media files that are images: HEIF, AVIF and Canon's raw files.
_PICTURE_BRANDS = rb"hei[cxms]|hev[cxms]|mif1|mif2|msf1|miaf|avi[fsco]|jpeg|jxl |jpm |jp2 |crx "
# An old QuickTime file begins with any of its boxes.
_QUICKTIME_BOXES = rb"moov|mdat|wide|free|skip|pnot"

_FILMS: tuple[tuple[re.Pattern[bytes], FilmFormat], ...] = (
    (re.compile(rb".{4}ftyp(?!" + _PICTURE_BRANDS + rb")", re.DOTALL), "mov"),
    (re.compile(rb"\0.{3}(?:" + _QUICKTIME_BOXES + rb")", re.DOTALL), "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "avi"),
)
_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\s*ffconcat\b"), "a list of other video files (ffconcat)"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*#EXTM3U"), "a playlist (HLS, M3U)"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*WEBVTT"), "subtitles (WebVTT)"),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*\d+\s*\r?\n\d\d:\d\d:\d\d,\d{3} -->"),
        "subtitles (SubRip)",
    ),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*\[Script Info\]"), "subtitles (SubStation Alpha)"),
    (re.compile(rb"\s*<(?:\?xml|!DOCTYPE|html|MPD)", re.IGNORECASE), "an XML or HTML file"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "an image (HEIC, AVIF or another of that kind)"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG image"),
    (re.compile(rb"\x89PNG"), "a PNG image"),
    (re.compile(rb"GIF8[79]a"), "a GIF image"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "a WebP image"),
    (re.compile(rb"%PDF"), "a PDF file"),
    (re.compile(rb"G.{187}G", re.DOTALL), "an MPEG transport stream"),
    (re.compile(rb"\x00\x00\x01[\xb3\xba]"), "an MPEG program stream"),
    (re.compile(rb"\x30\x26\xb2\x75"), "a Windows Media file"),
    (re.compile(rb"FLV\x01"), "a Flash video"),
    (re.compile(rb"OggS"), "an Ogg file"),
    (re.compile(rb"ID3|\xff[\xfb\xf3\xf2]|fLaC|RIFF.{4}WAVE", re.DOTALL), "a sound file"),
    (re.compile(rb"[\t\n\r\x20-\x7e]{16,}"), "a text file"),
)


def film_format(first_bytes: bytes) -> FilmFormat | None:
    """The container of a film that begins like this; None for anything else.

    >>> film_format(b"\\0\\0\\0 ftypisom"), film_format(b"\\0\\0\\0 ftypheic")
    ('mov', None)
    """
    return next((name for signature, name in _FILMS if signature.match(first_bytes)), None)


def other_kind(first_bytes: bytes) -> str | None:
    """What a file that is no film looks like; None where that cannot be told.

    >>> other_kind(b"ffconcat version 1.0")
    'a list of other video files (ffconcat)'
    """
    return next((name for signature, name in _OTHERS if signature.match(first_bytes)), None)
