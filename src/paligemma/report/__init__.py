"""Reports as HTML pages that need no other file and no network.

page.py     a page from a Jinja2 template in templates/, and images as data URIs
charts.py   charts as SVG, by matplotlib
"""
