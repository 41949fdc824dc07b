"""Processes in which files of strangers are read: what goes wrong there costs one file.

Readers of PDF, TIFF and video files are large programs in C, and some files crash or exhaust them.
In a process of its own that is harmless: it has limits on memory, CPU time and open files, can
write no files, and inherits no keys, sockets or other documents. It ends with the one that started
it.

frames.py    what is sent between the two
child.py     the process that reads
process.py   the process that asks
"""
