import ssl
from pathlib import Path

from relay.testing.certificates import Authority


def test_issued_certificates_load(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert_file, pair.key_file)
    assert ssl.create_default_context(cafile=str(authority.ca_file)).get_ca_certs()
