"""The whole path on phantom CTs, with a report; run it with `nnunet_pretrain demo`."""
