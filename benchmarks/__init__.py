"""What `make bench` and `make account` run: headwise beside its peers and beside the machine's own limits.

`bench` is the entry; `rows` says what is measured, `array_peers` and `model_peers` who else does it,
`measure` how it is timed, `results` what comes out, `report` and `chart` how it is shown. `fresh` measures
whole processes, `callers` many threads, `neighbours` several processes at once, `long` attention over many
keys and `growth` memory over many calls. `convert` makes the forms of MiniLM that the peers read, in the
folder that `setup_peers.sh` sets up.

`account` says where the time of models goes; `account_child` is one build at work, `account_table` the
arithmetic and the table.

`make bench-check` is `check`, with `verdicts`: it compares the kernels with the record in kernels.json.
"""
