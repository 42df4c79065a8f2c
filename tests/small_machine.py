"""Variables of all tests and of the commands they run; imported before torch, which reads some of them only once."""

import os

ENVIRONMENT = {
    "nnUNet_n_proc_DA": "2",
    "nnUNet_def_n_proc": "2",
    "nnUNet_compile": "f",
    # Tests run side by side on few cores. nnU-Net's training takes a thread per core whatever is set, and threads that
    # spin while they wait for each other make four processes on two cores ten times slower.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
os.environ.update(ENVIRONMENT)
