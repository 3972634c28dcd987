# Common to all runs: the import of mmfocalnet, hooks, logging, processes.
custom_imports = dict(imports=['mmfocalnet'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='TolerantParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    unreadable_files=dict(type='UnreadableFilesHook'),
    # With SeededSampler or SeededInfiniteSampler, a resumed run equals an uninterrupted one.
    iteration_seed=dict(type='SeedIterationsHook'),
    losses=dict(type='CheckLossesHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
