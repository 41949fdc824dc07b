"""Evaluation by field: documents whose true values are known, and what a model reads in them.

records.py     documents with true values, places and text; JSON Lines
receipts.py    CORD, SROIE and FUNSD in their official files
einvoices.py   electronic invoices, whose XML is the truth
align.py       true and read values of a document, matched
evaluation.py  a model and documents -> extractions, scores and a report in a folder
"""
