"""The job for Kubernetes in docs/."""

import yaml
from forked_tools import ROOT


def test_the_pods_have_what_they_use():
    claim, _ = yaml.safe_load_all((ROOT / 'docs/workspace.yaml').read_text())
    job = yaml.safe_load((ROOT / 'docs/pytorchjob.yaml').read_text())
    assert claim['kind'] == 'PersistentVolumeClaim'
    assert (job['apiVersion'], job['kind']) == ('kubeflow.org/v1', 'PyTorchJob')
    replicas = job['spec']['pytorchReplicaSpecs']
    assert replicas.keys() == {'Master', 'Worker'}
    for replica in replicas.values():
        pod = replica['template']['spec']
        (container,) = pod['containers']
        assert container['name'] == 'pytorch'
        gpus = container['resources']['limits']['nvidia.com/gpu']
        assert job['spec']['nprocPerNode'] == str(gpus)  # a string in the operator's schema
        mounts = {mount['name'] for mount in container['volumeMounts']}
        assert mounts == {volume['name'] for volume in pod['volumes']}
        claims = [volume.get('persistentVolumeClaim') for volume in pod['volumes']]
        assert {'claimName': claim['metadata']['name']} in claims
        for argument in container['command']:
            if argument.startswith('/opt/mmfocalnet/'):
                assert (ROOT / argument.removeprefix('/opt/mmfocalnet/')).is_file()
