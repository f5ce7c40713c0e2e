"""The bank: a folder with one checked file for each task."""

from ksm.bank.bank import Bank as Bank
