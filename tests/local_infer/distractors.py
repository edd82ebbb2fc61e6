"""Made-up questions of the kinds people ask, to fill an index with: the same for the same seed."""

from __future__ import annotations

from random import Random

_ZH = (
    "如何{v}{a}", "怎么{v}{a}的{b}", "{a}怎么{v}", "为什么{a}不能{v}", "{a}在哪里{v}", "请问{a}可以{v}{b}吗",
    "{a}坏了怎么办",
    "{a}和{b}有什么区别", "{a}的{b}是多少", "{a}多久能{v}", "没有{a}可以{v}{b}吗", "{n}个{a}多少钱", "谁可以{v}{a}",
    "{a}{v}之后还能{w}吗", "{v}{a}需要什么条件",
)  # fmt: skip
_EN = (
    "How do I {v} the {a}?", "How can I {v} my {a} {b}?", "Why can't I {v} the {a}?", "Where can I {v} a {a}?",
    "What is the {a} {b}?", "Can I {v} {a} without a {b}?", "When does the {a} {b} start?",
    "Is the {a} included in the {b}?",
    "How long does the {a} take?", "How much does {a} {b} cost?", "Who can {v} the {a}?", "{a} {b} is not working",
    "Do you have {n} {a}?", "Can I {v} the {a} after I {w} it?", "How do I {v} {a} from {b}?",
)  # fmt: skip
_ZH_VERBS = """
    修改 删除 申请 查看 开启 关闭 取消 恢复 导入 导出 绑定 解绑 升级 下载 上传 设置 购买 退款 预约 续费
    安装 卸载 添加 分享 打印 领取 查询 提交 激活 冻结
""".split()  # noqa: SIM905 (as text it can be read)
_EN_VERBS = """
    change delete request view enable disable cancel restore import export link unlink upgrade download upload
    configure buy refund book renew install uninstall add share print claim check submit activate freeze
""".split()  # noqa: SIM905 (as text it can be read)
_EN_NOUNS = """
    account report ticket license sensor folder device calendar battery dashboard profile meeting payment session
    widget template channel camera backup policy wallet playlist keyboard gateway cluster table course lesson
    order address
""".split()  # noqa: SIM905 (as text it can be read)


def make_distractors(count: int, seed: int = 5) -> list[str]:
    """`count` distinct questions, six of ten in Chinese; their things are made-up words: they answer nothing."""
    rng = Random(seed)
    syllables = ["".join(pair) for pair in zip("btkmrlsnpd", "aeiouaeiou", strict=True)]
    made = ["".join(rng.choice(syllables) for _ in range(rng.randint(2, 4))) for _ in range(4000)]
    things = [
        "".join(chr(0x4E00 + min(int(rng.paretovariate(0.7) * 40), 6000)) for _ in range(rng.randint(2, 4)))
        for _ in range(4000)
    ]
    found: dict[str, None] = {}
    while len(found) < count:
        if rng.random() < 0.6:
            text = rng.choice(_ZH).format(
                v=rng.choice(_ZH_VERBS),
                w=rng.choice(_ZH_VERBS),
                a=rng.choice(things),
                b=rng.choice(things),
                n=rng.randint(2, 9),
            )
        else:
            text = rng.choice(_EN).format(
                v=rng.choice(_EN_VERBS),
                w=rng.choice(_EN_VERBS),
                a=rng.choice(made),
                b=rng.choice(_EN_NOUNS) if rng.random() < 0.7 else rng.choice(made),
                n=rng.randint(2, 9),
            )
        found[text] = None
    return list(found)
