"""Certify a model: does it still compute what was trained, in this form and on this device?

    from paligemma.certify import CertifyRequest, certify

    certificate = certify(CertifyRequest(model="folder", weights="int4", against="original"))
    print(certificate.verdict, certificate.summary())

findings.py     what a certificate says, and where
checkpoint.py   a checkpoint's tensors in blocks of rows
structure.py    config, sizes and tokenizer against the release or the family
statistics.py   weights that no training leaves, and unusual ones
damage.py       tensor by tensor against an original, and what was done to those that differ
probes.py       images and prompts
paths.py        the probes through one path; drift.py: layer by layer
agreement.py    limits and verdicts
known.py        mini's own outputs and published answers of releases
certificate.py  all of it, in order
page.py         the report as a page
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.certify.certificate import Certificate as Certificate
    from paligemma.certify.certificate import CertifyRequest as CertifyRequest
    from paligemma.certify.certificate import certify as certify
    from paligemma.certify.findings import Finding as Finding
    from paligemma.certify.page import render_certificate as render_certificate
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
