import pytest

from nae_monitor.detect import Encoder, RuleSet, load_rules
from nae_monitor.detect.engine import semantic_answerer
from nae_monitor.detect.evaluation import SemanticAnswerer
from nae_monitor.health import Health
from nae_monitor.models import load_encoder


@pytest.fixture(scope="session")
def rules() -> RuleSet:
    return load_rules(["builtin"])


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("embedded/all-minilm-l6-v2")


@pytest.fixture(scope="session")
def semantic(rules: RuleSet, encoder: Encoder) -> SemanticAnswerer:
    return semantic_answerer(rules.rules, encoder, Health())
