"""What these tests need of the machine, else a skip that says so."""

import pytest

from pwm.etcd_process import EtcdProcessError, find_etcd


@pytest.fixture(scope="session")
def etcd_binary() -> str:
    try:
        return find_etcd()
    except EtcdProcessError as error:
        pytest.skip(str(error))
