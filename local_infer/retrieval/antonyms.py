"""Word lists, Chinese and English: concepts with the words that say them, which concepts exclude each other, question words.

A line is `name: Chinese words | English words or phrases, comma separated`. Words of one concept are taken as the same word, so
they must be interchangeable in a question to a help desk; when in doubt a word is left out: a missing synonym costs an
answer, a wrong one gives a false answer. Single Chinese characters stand here only where they hardly ever mean something else.
"""

from __future__ import annotations

# ruff: noqa: E501 (a concept is a line)

POLAR = """
on: 开启 打开 启用 开通 启动 激活 开始使用 订阅 | turn on, switch on, enable, activate, activation, subscribe, start
off: 关闭 关掉 停用 禁用 取消 停止 停掉 关停 退订 终止 解约 | turn off, switch off, disable, deactivate, unsubscribe, cancel, stop, terminate, shut down, opt out, cancellation, stop receiving, stop getting
pause: 暂停 挂起 | pause, suspend
resume: 继续 恢复使用 | resume, continue
restore: 恢复 找回 还原 取回 复原 | restore, recover, get back, retrieve, undelete
backup: 备份 | back up, backup
increase: 增加 提高 提升 调高 加大 增大 扩大 上调 调大 放大 提额 扩容 | increase, raise, higher, enlarge, extend, scale up, zoom in, bump up
decrease: 减少 降低 调低 减小 缩小 下调 调小 缩短 缩容 | decrease, lower, reduce, lessen, shrink, scale down, zoom out, shorten
import: 导入 匯入 引入 | import
export: 导出 匯出 | export
upload: 上传 | upload
download: 下载 | download
upgrade: 升级 升舱 | upgrade
downgrade: 降级 | downgrade
include: 包含 包括 含有 含 | include, contain
exclude: 不含 不包含 不包括 除外 除去 | exclude, except
public: 公开 公有 | public
private: 私密 私有 私人 | private
personal: 个人 | personal
company: 企业 公司 对公 | company, business, corporate
allow: 允许 准许 许可 | allow, permit, grant
deny: 禁止 拒绝 阻止 驳回 谢绝 屏蔽 拉黑 加入黑名单 | deny, reject, refuse, forbid, prohibit, ban, block, decline, blacklist
accept: 接受 同意 批准 通过 接收 | accept, approve, agree
receive: 收到 收取 | receive
send: 发送 寄出 发出 寄送 | send
unblock: 解除 解禁 解封 移出黑名单 | unblock, unban, lift
add: 添加 新增 加入 创建 新建 建立 | add, create, join
remove: 删除 误删 删 移除 清除 删掉 去掉 清空 清理 抹掉 退出 | remove, delete, erase, clear, purge, wipe
close_account: 注销 销户 销号 | close my account, close account, delete account, delete my account, remove my account
register: 注册 登记 开户 | register, registration, sign up, enroll, open account, open an account
login: 登录 登陆 登入 签到 | log in, login, sign in, logon
logout: 登出 退出登录 签退 下线 | log out, logout, sign out, sign off
bind: 绑定 关联 | bind, link
unbind: 解绑 解除绑定 取消绑定 取消关联 | unbind, unlink
connect: 连接 接入 配对 连上 | connect, pair, hook up
disconnect: 断开 断连 | disconnect, unpair
install: 安装 装上 | install, installation
uninstall: 卸载 | uninstall
mount: 挂载 | mount
unmount: 取消挂载 | unmount
encrypt: 加密 | encrypt, encryption
decrypt: 解密 | decrypt
compress: 压缩 打包 | compress, zip
decompress: 解压 解压缩 | decompress, unzip, unpack, extract
lock: 锁定 上锁 锁住 | lock
unlock: 解锁 开锁 | unlock
freeze: 冻结 | freeze
unfreeze: 解冻 解除冻结 | unfreeze, thaw
show: 显示 展示 | show, display
hide: 隐藏 | hide
expand: 展开 | expand, unfold
collapse: 收起 折叠 | collapse, fold
merge: 合并 | merge, combine
split: 拆分 分割 切分 | split, separate
follow: 关注 | follow
unfollow: 取消关注 取关 | unfollow
mute: 静音 禁言 | mute, silence
unmute: 解除静音 解除禁言 取消静音 | unmute
pin: 置顶 | pin
unpin: 取消置顶 | unpin
archive: 归档 | archive
unarchive: 取消归档 | unarchive
deposit: 充值 存款 存入 存钱 | deposit, top up, recharge
withdraw: 提现 取款 取出 取钱 支取 提取 | withdraw, withdrawal, cash out
buy: 购买 买 买入 下单 选购 | buy, purchase
sell: 出售 卖出 售卖 卖 | sell
borrow: 借 借入 借阅 | borrow
lend: 借出 出借 | lend
give_back: 归还 | give back
repay: 还款 偿还 还清 还贷 | repay, pay off, repayment
refund: 退款 退钱 退费 | refund, money back
return: 退货 退回 | return
exchange: 换货 调换 | exchange
push: 推送 | push
pull: 拉取 | pull
promote: 晋升 提拔 | promote
demote: 降职 撤职 | demote
before: 之前 以前 前 事前 | before, prior to
after: 之后 以后 后 事后 | after, once
more: 更多 多于 高于 超过 以上 大于 | more than, above, over, exceed, at least
less: 更少 少于 低于 不足 以下 小于 以内 | less than, below, under, at most, within
max: 最大 最高 最多 | maximum, max, highest, largest, most, biggest
min: 最小 最低 最少 | minimum, min, lowest, smallest, least
earliest: 最早 最先 首班 头班 | earliest, soonest
latest: 最晚 最迟 末班 尾班 | latest
first: 首次 初次 首个 | first
last: 最后 上次 | last, final
previous: 上个 上一 上月 上周 去年 昨天 过去 | previous, past, yesterday
next: 下个 下一 下月 下周 明年 明天 未来 | next, upcoming, future, tomorrow
today: 今天 今日 | today
early: 提前 提早 | early, ahead, in advance
late: 延后 推迟 延期 | postpone, delay
fast: 快速 变快 | fast, quick
slow: 慢 缓慢 卡顿 | slow
large: 大号 | large, big, high
small: 小号 | small, little, low
up: 向上 | up
down: 向下 | down
left: 左 左侧 左边 | left
right: 右 右侧 右边 | right side, right
front: 前置 前面 前排 | front
rear: 后置 后面 后排 | rear, back side
inside: 室内 里面 内部 内网 | indoor, indoors, inside, internal
outside: 室外 户外 外面 外部 外网 | outdoor, outdoors, outside, external
online: 线上 在线 网上 | online
offline: 线下 离线 | offline
domestic: 国内 境内 | domestic
foreign: 国际 国外 境外 海外 全球 | international, internationally, abroad, overseas, foreign, worldwide
weekday: 工作日 平日 | weekday
weekend: 周末 双休日 | weekend
day: 白天 日间 | daytime
night: 夜间 晚上 夜晚 | night, nighttime
morning: 上午 早上 早晨 | morning
afternoon: 下午 | afternoon
summer: 夏季 夏天 夏令 | summer
winter: 冬季 冬天 冬令 | winter
hot: 制热 热 | hot, heat
cold: 制冷 冷 凉 | cold, cool
adult: 成人 成年人 大人 | adult, grown-up
child: 儿童 小孩 孩子 未成年人 | child, children, kid, minor
new: 新用户 新人 新客 | new
old: 老用户 老客户 旧 | old, existing
male: 男 男性 男士 | male, man, men
female: 女 女性 女士 | female, woman, women
buyer: 买家 买方 顾客 | buyer, customer
seller: 卖家 卖方 商家 商户 店家 | seller, merchant, vendor
landlord: 房东 出租人 | landlord
tenant: 租客 承租人 租户 房客 | tenant
outbound: 去程 | outbound
inbound: 回程 返程 | inbound
incoming: 接收的 来电 | incoming
outgoing: 发送的 去电 | outgoing
master: 主库 主节点 | primary, master
replica: 备库 从库 备节点 从节点 | replica, secondary, standby
ascending: 升序 | ascending
descending: 降序 倒序 | descending
free: 免费 | free, free of charge
paid: 收费 付费 付钱 | paid
success: 成功 | success, succeed, successful
fail: 失败 出错 报错 | fail, failure
correct: 正确 | correct
wrong: 错误 错 填错 弄错 | wrong, incorrect, mistaken, mistake
same: 相同 同样 一样 | same, identical
different: 不同 不一样 区别 差别 | different, difference, differ
"""

EXCLUDING = """
on/off/pause pause/resume/off restore/backup/remove increase/decrease import/export upload/download upgrade/downgrade
include/exclude public/private personal/company allow/deny accept/deny receive/send deny/unblock add/remove on/remove
login/logout/register register/close_account bind/unbind connect/disconnect install/uninstall mount/unmount/uninstall
encrypt/decrypt compress/decompress lock/unlock freeze/unfreeze show/hide expand/collapse merge/split follow/unfollow
mute/unmute pin/unpin archive/unarchive deposit/withdraw buy/sell borrow/lend/give_back borrow/repay refund/return/exchange
push/pull promote/demote before/after more/less max/min earliest/latest first/last previous/next/today early/late fast/slow
large/small up/down left/right front/rear inside/outside online/offline domestic/foreign weekday/weekend day/night
morning/afternoon summer/winter hot/cold adult/child new/old male/female buyer/seller landlord/tenant outbound/inbound
incoming/outgoing master/replica ascending/descending free/paid success/fail correct/wrong same/different
"""

PLAIN = """
change: 修改 更改 更换 变更 改成 换成 改 换 更新 编辑 改为 调整 | change, modify, edit, update, alter, replace, switch, make changes to
view: 查看 查询 查 看 查找 看到 浏览 | view, see, check, look up, find, track
apply: 申请 办理 办 提交申请 | apply for, apply, request, application for
use: 使用 用 利用 | use, make use of
set: 设置 设定 配置 设为 设成 调到 调 | set, configure, set up, configuration, setting, settings
obtain: 获取 获得 得到 领取 拿到 | obtain, acquire, get
contact: 联系 找 联络 | contact, reach, get in touch with, talk to
submit: 提交 交 递交 上交 | submit, hand in, turn in
support: 支持 提供 | support, offer, provide, available
restart: 重启 重新启动 | restart, reboot
reset: 重置 恢复出厂设置 恢复默认 | reset, factory reset
account: 账号 账户 帐号 帐户 户头 | account
password: 密码 口令 | password, passcode
notification: 通知 提醒 消息提醒 消息通知 推送通知 | notification, alert, reminder
renewal: 续费 续订 续期 | renewal
automatic: 自动 | automatic, auto, automatically
fee: 费用 价格 价钱 资费 收费标准 运费 | price, fee, cost, charge, rate
speed: 速度 网速 | speed
invoice: 开具发票 开发票 发票 | invoice, receipt
parcel: 快递 包裹 物流 | parcel, package, shipment
ship: 配送 送货 发货 寄 送达 送到 | ship, deliver, delivery, shipping
arrive: 到账 到达 送达 到货 | arrive
shop: 门店 店铺 店面 商店 实体店 | shop, store
goods: 商品 产品 货品 物品 | item, product, goods, merchandise
order_: 订单 | order
coupon: 优惠券 代金券 折扣券 | coupon, discount code, promo code, voucher
discount: 优惠 打折 折扣 | discount
member: 会员 | membership
damaged: 坏了 坏 损坏 破损 故障 | damaged, broken, defective, faulty
lost: 丢了 丢失 遗失 丢 弄丢 | lost, missing, lose
expire: 过期 到期 失效 有效期 | expire, expiry, expiration
forget: 忘记 忘了 不记得 | forget, forgot, forgotten
address: 地址 位置 | address, location
phone: 手机 电话 手机号 电话号码 手机号码 | phone, mobile, phone number
photo: 照片 相片 图片 | photo, picture, image
avatar: 头像 | avatar, profile picture, profile photo
name: 名字 昵称 用户名 名称 姓名 | username, user name, nickname, name
screenshot: 截屏 截图 屏幕截图 | screenshot, take a screenshot, capture screen, capture my screen, capture the screen, screen capture
record: 记录 历史记录 历史 | history, record
chat: 聊天 对话 会话 | chat, conversation
friend: 好友 朋友 | friend
invite: 邀请 | invite, refer, invitation
team: 团队 小组 群组 | team, group
staff: 客服 人工客服 在线客服 | customer service, customer support, support team, help desk, customer care
app: 应用 软件 程序 客户端 app | app, application, client
server: 服务器 主机 | server
computer: 电脑 计算机 | computer, pc
website: 网站 网页 | website, site
storage: 存储 空间 内存 | storage, space
insufficient: 不足 不够 不够用 满了 | not enough, insufficient, full
mirror: 镜像 镜像站 镜像源 软件源 | mirror
sync: 同步 | sync, synchronize
verify: 校验 验证 核对 核实 | verify, validate, check the integrity of
interface: 接口 api | api
limit: 限制 上限 限额 额度 配额 | limit, quota, allowance
timeout: 超时 | timeout, time out, timed out
error: 报错 异常 | error
compute: 计算 算 核算 | calculate, compute, count
deploy: 部署 | deploy, run in
language: 语言 | language
dark: 夜间模式 深色模式 暗色模式 黑暗模式 | dark mode, dark theme, night mode
pet: 宠物 | pet
book: 预约 预订 预定 订 | book, reserve, reservation, booking, make an appointment
appointment: 挂号 | appointment
checkin: 入住 办理入住 | check in, check-in
flight: 航班 飞机 | flight
delayed: 延误 晚点 | delayed
compensate: 赔偿 补偿 赔 | compensation, compensate
luggage: 行李 | luggage, baggage
reschedule: 改签 | reschedule
salary: 工资 薪水 薪资 | salary, wage, get paid, payday
overtime: 加班费 加班工资 加班 | overtime pay, overtime
resign: 离职 辞职 | resign, quit
leave_: 请假 休假 | time off, leave of absence, leave, leave request
vacation: 年假 带薪年假 | vacation day, vacation, annual leave, paid leave
sick: 病假 | call in sick, sick leave
report: 投诉 举报 | report, complain, complain about
review: 评价 评论 点评 | review, feedback
points: 积分 | points, reward points
redeem: 兑换 换取 | redeem
repair: 维修 修理 修 | repair, fix
onsite: 上门 | on-site, come to
warranty: 保修期 保修 质保 质保期 | warranty, warranty period
publish: 公布 发布 | publish, release
grade: 成绩 分数 | grade, score, mark
homework: 作业 | homework, assignment
exam: 考试 | exam, test
retake: 补考 重考 | retake, take again
course: 课程 选课 | course, class
school: 学校 | school
renew: 续借 | renew
copy: 复制 拷贝 | copy
move: 移动 转移 迁移 | move, migrate
transfer: 转账 汇款 转 | transfer, remit
loan: 贷款 借款 | loan
card: 银行卡 | bank card
credit: 信用卡 | credit card, card on file
bill: 账单 | bill
pay: 付款 支付 缴费 交费 | pay, payment
play: 播放 | play
sound: 声音 | sound, audio
print: 打印 | print
hire: 租 租用 | rent
method: 方法 方式 步骤 流程 | method, procedure, process, step
requirement: 条件 要求 | requirement, condition
data: 数据 资料 | data
privacy: 隐私 个人隐私 | privacy
safe: 安全 | safe, secure
leak: 泄露 泄漏 | leak
keep: 保存 存放 存 储存 | save, keep, stored, store
location_open: 营业 开门 上班 | open, opening hours
location_close: 关门 打烊 下班 | close
undo: 撤销 回滚 撤回 | undo, revert, roll back
people: 人 | people, person
"""

QUESTIONS = """
how: 如何 怎么 怎样 咋 怎么样 怎么办 怎么做 如何做 怎么弄 怎么处理 如何处理 怎么解决 如何解决 怎么操作 如何操作 该怎么办 应该怎么办 如何进行 怎么才能 有什么办法 什么办法 | how do i, how can i, how do you, how to, how can, how do, how does, how, how should i, what is the way to, what's the way to, is there a way to, what is the process for, what's the procedure for, what is the command to, what do i need to do to, what should i do if, what should i do when, what should i do, what is the application process for
why: 为什么 为何 为啥 什么原因 是什么原因 怎么回事 是怎么回事 原因 | why, what causes, why did, why is, what is the reason, how come
when: 什么时候 何时 几点 哪天 几号 啥时候 什么时间 几月 | when, what time, what day, at what time
howlong: 多久 多长时间 几天 多少天 多长 几个月 多少小时 几小时 | how long, how many days, how soon
howoften: 更新频率 频率 多久一次 多久更新一次 | how often, how frequently
where: 哪里 哪儿 在哪里 在哪儿 在哪 什么地方 在什么地方 何处 哪 | where, in which place
whereto: 在哪里可以 哪里可以 哪里能 在哪里能 在哪能 去哪里 去哪 到哪里 | where can i, where do i, where should i, where to, where could i
who: 谁 谁来 什么人 哪些人 | who, whom, whose
howmuch: 多少钱 多少 几钱 | how much
howmany: 几个 几次 多少个 多少次 几人 几个人 多少人 | how many
which: 哪个 哪种 哪些 | which
what: 是多少 什么 是什么 有什么 都有什么 有哪些 都有哪些 什么样 啥 | what, what is, what are, what's
whether: 能不能 可不可以 是否 是不是 能否 可否 有没有 会不会 要不要 需不需要 可以 能 吗 | can i, can, could i, could, do you, does, do, is there, are there, is it possible to, may i, am i, is, are, do i, will, would, did
"""

NEGATIONS = """
无法 不能 没法 不可以 不可 不允许 不支持 不会 不用 不必 不需要 不想 不要 不让 不得 没有 没能 未能 并非 不 没 未 非 勿 无 莫 避免
| not, no, never, cannot, can't, cant, won't, wont, don't, dont, doesn't, doesnt, didn't, didnt, isn't, isnt, aren't, wasn't, weren't, haven't, hasn't, shouldn't, wouldn't, couldn't, unable to, unable, without, no longer, neither, nor, avoid, isn't possible
"""

NOT_NEGATIONS = """
不好意思 对不起 不管 不仅 不过 差不多 不久 不但 不锈钢 不同 不一样 不足 不够 不够用 不含 不包含 不包括 无理由 无线 无人 非常 别人 未来 不记得 不动产 无锡 南无
"""

FILLERS = """
请问 您好 你好 我想 我要 我想要 我想问 我需要 想要 麻烦 应该 该 需要 要 想 请 一下 一个 的 了 呢 啊 吧 呀 嘛 把 将 都 也 就 还 我 你 您 你们 我们 咱们 他 她 它 我的 你的 这个 那个 这 那 些 是 在 有 会 得 着 过 吗 来 去 自己 如果 突然 大概 大约 大 一般 里 上 掉 进行 时候 现在 目前 究竟 到底 谢谢 和 与 时 所 被 最近 已经 已 却 但 其 并 想知道 才能 才 到 中 们 之
必须 必要 很 太 好像 总是 一直 老是 信息 情况 服务 功能 操作 选项 问题 东西 事情 具体 相关 有关 关于 对于 可能 方便 帮忙 帮 怎 才 再 又 只 最后 那么 这样 为了 以及 及 或 或者 还是 并且 而 则 该 此 每个 所有 全部 任何 一些 有点 真的 希望 打算 准备 尝试 试着
| possible, information, info, service, feature, option, problem, issue, thing, regarding, about, currently, right now, actually, trying to, try to, able to, go about, every, each, any of, own, kind of, need, required, necessary, is left, are left, remaining, very, really, always, keep, a, an, the, my, your, our, their, his, her, its, i, you, we, they, he, she, it, me, us, please, of, for, in, on, at, with, and, or, is, are, was, were, be, been, am, do, does, did, have, has, had, will, would, should, could, can, there, this, that, these, those, if, some, any, someone, just, want to, would like to, i want to, i'd like to, i need to, need to, so, very, also, too, hi, hello, thanks, thank you, tell me, could you tell me, permanently, another, new one, by, as, s, all, when it, then, when i, here
"""

DIRECTIONS = """
from: 从 自 由 | from
to: 到 给 向 往 转成 转为 换到 换成 切换到 转 换 | to, into, onto, toward
than: 比 | than
versus: 欠 告 替 | sue, owe
"""

UNITS = """
second: 秒 秒钟 | second, sec, s
minute: 分钟 | minute, min
hour: 小时 个小时 钟头 | hour, hr, h
day: 天 日 个工作日 | day, d
week: 周 星期 个星期 | week, wk
month: 个月 月 | month
year: 年 周年 | year, yr
age: 岁 周岁 | years old, year old, year-old
yuan: 元 块 块钱 人民币 ¥ | yuan, rmb, cny
dollar: 美元 美金 $ | dollar, usd
euro: 欧元 € | euro, eur
percent: % 百分之 | percent, %
kb: | kb, k, kib
mb: 兆 | mb, m, mib, megabyte
gb: | gb, g, gib, gigabyte
tb: | tb, t, tib, terabyte
kg: 公斤 千克 | kg, kilo, kilogram
gram: 克 | gram
jin: 斤 | jin
pound: 磅 | lb, lbs, pound
km: 公里 千米 | km, kilometer, kilometre
meter: 米 | meter, metre
cm: 厘米 | cm, centimeter
mile: 英里 | mile
inch: 寸 英寸 | inch
celsius: 摄氏度 ℃ | celsius, degrees celsius, degree celsius
fahrenheit: 华氏度 ℉ | fahrenheit, degrees fahrenheit, degree fahrenheit
degree: 度 | degree
times: 次 遍 回 | time
people: 人 个人 位 名 | people, person, user
pieces: 个 件 只 台 张 份 条 本 | piece
times_of: 倍 | x
grade: 年级 | grade
line: 号线 | line
"""
