"""The objectives once more: loops over rows and kept tokens, torch float64.

Written from the formulas, slowly and without masks: a row is the list of its
kept tokens. Shares no code with mmr1; torch differentiates it.
"""

import torch


def log_ratio(logp, old, level):
  """One number a token; `level` of mmr1, or 'product'."""
  d = logp - old
  if level == 'token':
    return d
  if level == 'product':
    return d.sum().expand(len(d))
  if level == 'sequence':
    return d.mean().expand(len(d))
  return d.mean().detach() + logp - logp.detach()


def clip(d, a, logp, eps_low=0.2, eps_high=0.2, dual_clip=None, delta=None):
  del logp
  r = d.exp()
  near = r.clamp(1 - eps_low, 1 + eps_high)
  gain = torch.minimum((r if delta is None else r.clamp(max=delta)) * a,
                       near * a)
  if dual_clip is not None:
    gain = torch.where(a < 0, torch.maximum(gain, dual_clip * a), gain)
  return -gain


def cispo(d, a, logp, ratio_low=0.0, ratio_high=5.0):
  return -d.exp().clamp(ratio_low, ratio_high).detach() * a * logp


def sapo(d, a, logp, tau_pos=1.0, tau_neg=1.05):
  del logp
  tau = torch.where(a > 0, tau_pos, tau_neg)
  return -a * (4 / tau) / (1 + torch.exp(-tau * (d.exp() - 1)))


def none(d, a, logp):
  del d
  return -a * logp


def linear(d, a, logp):
  del logp
  return -a * d.exp()


def geo_mean(d, a, logp, eps_low=0.4, eps_high=0.4):
  del logp
  inside = torch.where(a > 0, d.clamp(max=eps_high), d.clamp(min=-eps_low))
  inside = torch.where(a == 0, 0.0, inside)
  return (-a.mean() * inside.mean().exp()).expand(len(d))


def k1(x, y):
  return x - y


def absolute(x, y):
  return torch.where(x > y, x - y, y - x)


def k2(x, y):
  return (x - y) ** 2 / 2


def k3(x, y, difference_clamp=20.0, value_clamp=10.0):
  d = y - x
  if difference_clamp is not None:
    d = d.clamp(-difference_clamp, difference_clamp)
  value = d.exp() - d - 1
  return value if value_clamp is None else value.clamp(max=value_clamp)


def k3_plus(x, y):
  return k2(x, y) + (k3(x, y) - k2(x, y)).detach()


def reduce(rows, mode='token_mean', rows_='live', length=None):
  """rows: [[values of the kept tokens]], every row of the batch."""
  live = [row for row in rows if len(row)]
  if not live:
    return torch.zeros((), dtype=torch.float64, requires_grad=True)
  total = sum(row.sum() for row in live)
  n = {'live': len(live), 'all': len(rows), 'none': 1}[rows_]
  if mode == 'token_mean':
    return total / sum(len(row) for row in live)
  if mode == 'seq_mean':
    return sum(row.mean() for row in live) / n
  if mode == 'seq_sum':
    return total / n
  return total / (n * length)


def policy(x, fn, level, **kw):
  """[values of the kept tokens] for every row."""
  return [
      fn(log_ratio(logp, old, level), a, logp, **kw)
      for logp, old, a in _rows(x, 'logp', 'old', 'advantage')]


def kl(x, fn, bias=False, **kw):
  """The same for a KL to 'ref', x the ratio to 'old' with `bias`."""
  return [
      fn(logp, ref, **kw) * ((logp - old).exp() if bias else 1)
      for logp, ref, old in _rows(x, 'logp', 'ref', 'old')]


def _rows(x, *names):
  mask = x['mask']
  return [[x[name][i, j][mask[i, j]] for name in names]
          for i in range(mask.shape[0]) for j in range(mask.shape[1])]
