"""Flow matching on the straight path: times and their shift, the loss, sampling, guidance.

Everywhere t = 0 is data and t = 1 is noise, ``y_t = (1 - t) data + t noise``, and the velocity is ``noise - data``. Functions on
plain tensors; the network is any callable ``velocity(y_t, t)``.

    t = shift_times(sample_times(batch, TimeDistribution(), generator), shift)
    loss = flow_matching_loss(model(interpolate(data, noise, t), t), data, noise)
    result = sample(model, noise, time_grid(50, shift))
"""
