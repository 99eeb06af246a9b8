from sev_agent.config import HypervisorSection
from sev_agent.domain.firmware import FirmwareWanted, FlashBuild, choose_firmware
from sev_agent.hypervisor.firmware_descriptors import descriptors
from sev_agent.sev.generation import Generation


def test_installed_firmware() -> None:
    """The firmware that is installed here has one for SEV, its files are there, and every other has its reason."""
    choice = choose_firmware(descriptors(HypervisorSection().firmware_dirs), FirmwareWanted(generation=Generation.SEV))

    assert choice.code.is_file()
    assert isinstance(choice.build, FlashBuild)
    assert choice.build.nvram_template is not None
    assert choice.build.nvram_template.is_file()
    assert all(candidate.reason for candidate in choice.candidates)
