"""Word lists, Chinese and English: concepts with the words that say them, which concepts exclude each other, question words.

A line is `name: Chinese words | English words or phrases, comma separated`. Words of one concept are taken as the same word, so
they must be interchangeable in a question to a help desk; when in doubt a word is left out: a missing synonym costs an
answer, a wrong one gives a false answer. Single Chinese characters stand here only where they hardly ever mean something else.
"""

from __future__ import annotations

# ruff: noqa: E501 (a concept is a line)

POLAR = """
on: 开机 开启 打开 启用 开通 启动 激活 开始使用 使能 订阅 开始 打开 开起来 | turn on, switch on, enable, activate, activation, subscribe, start, launch, begin
off: 停 停了 关了它 终结 结束 关 退会员 关机 取消掉 关上 关了 中止 断掉 关闭 关掉 停用 禁用 取消 停止 停掉 关停 退订 终止 解约 | turn off, switch off, disable, deactivate, unsubscribe, cancel, stop, terminate, shut down, opt out, cancellation, stop receiving, stop getting, end, discontinue, halt, call off, switch it off, turn it off
pause: 暂停 挂起 | pause, suspend
resume: 继续 恢复使用 | resume, continue
restore: 恢复 找回 寻回 还原 取回 复原 | restore, recover, get back, retrieve, undelete
backup: 备份 | back up, backup
increase: 涨 变多 加高 增加 提高 增大 延长 变大 提升一下 提升 调高 加大 增大 扩大 上调 调大 放大 提额 扩容 | increase, raise, higher, bigger, boost, make bigger, make larger, expand, turn up, enlarge, extend, scale up, zoom in, bump up
decrease: 减 减低 减少 降低 调低 减小 缩小 下调 调小 缩短 缩容 | decrease, lower, turn down, make smaller, smaller, reduce, lessen, shrink, cut down, minimize, scale down, zoom out, shorten
import: 导入 匯入 引入 | import
export: 导出 匯出 | export
upload: 上传 传上去 传上 | upload
download: 下载 下到本地 | download
upgrade: 升级 升舱 | upgrade
downgrade: 降级 | downgrade
include: 包 包含 包括 含有 含 | include, contain, come with
exclude: 不含 不包含 不包括 除外 除去 | exclude, except
public: 公开 公有 | public
private: 私密 私有 私人 仅自己可见 | private
personal: 个人 | personal
company: 企业 公司 对公 公司名义 单位 | company, business, corporate
allow: 允许 准许 许可 | allow, permit, grant
deny: 禁止 拒绝 阻止 驳回 谢绝 不接受 | deny, reject, refuse, forbid, prohibit, ban, decline
block: 屏蔽 拉黑 加入黑名单 拦截 拉进黑名单 加黑名单 | block, blacklist
accept: 接受 同意 批准 通过 接收 | accept, approve, agree
receive: 收到 收取 | receive
send: 发给 发过去 发送 寄出 发出 寄送 | send
unblock: 解除 解禁 解封 移出黑名单 | unblock, unban, lift
add: 添加 新增 增添 加一个 加 增设 | add
create: 创建 新建 建立 建一个 建 | create
join: 加入 加进 进群 | join
remove: 删除 删 移除 踢出 抹除 清 清除 删掉 去掉 清空 清理 抹掉 去除 清掉 弄掉 拿掉 撤掉 | remove, delete, erase, clear, purge, wipe, get rid of, take off, take down, eliminate, clean out
quit: 退出 退群 | leave
close_account: 注销 销户 销号 注销账号 注销账户 删除账号 删除账户 删账号 删号 账号注销 账户注销 | close my account, close account, delete account, delete my account, remove my account, deactivate my account, cancel my account, close down my account, get rid of my account, delete an account, close an account, permanently delete my account, terminate my account
register: 注册 登记 注册账号 注册一个账号 注册新账号 创建账号 创建账户 注册账户 建账号 开通账号 | register, registration, sign up, create an account, create account, create my account, set up an account, make an account, sign up for an account, register an account, register for an account, create a new account
login: 上号 登进去 登进 登上 登录 登陆 登入 | log in, login, log into, sign into, get into my account, access my account, log on to, sign on, sign in, logon
logout: 退出账号 退出账户 登出 退出登录 签退 下线 | log out, logout, sign out, sign off
bind: 绑定 关联 绑 绑上 | bind, link
unbind: 解绑 解除关联 解除绑定 取消绑定 取消关联 | unbind, unlink
connect: 连接到 连接上 连接 接入 配对 连上 连 接上 | connect, connect up, pair, hook up
disconnect: 断开 断连 | disconnect, unpair
install: 安装 装上 安装好 | install, installation
uninstall: 卸载 | uninstall
mount: 挂载 | mount
unmount: 取消挂载 | unmount
encrypt: 加密 | encrypt, encryption
decrypt: 解密 | decrypt
compress: 压缩 打包 | compress, zip
decompress: 解压 解压缩 | decompress, unzip, unpack, extract
lock: 锁定 上锁 锁住 锁 锁了 | lock
unlock: 解锁 打开锁 开锁 | unlock
freeze: 冻结 冻住 | freeze
unfreeze: 解冻 解除冻结 | unfreeze, thaw
show: 显示 展示 显示出来 | show, display
hide: 隐藏 藏起来 不显示 | hide
expand: 展开 | expand, unfold
collapse: 收起 折叠 | collapse, fold
merge: 合并 合成一个 并在一起 | merge, combine
split: 拆分 拆开 分开 分割 切分 | split, separate
follow: 关注 | follow
unfollow: 取消关注 取关 | unfollow
mute: 静音 关声音 禁言 | mute, silence
unmute: 解除静音 解除禁言 取消静音 | unmute
pin: 置顶 | pin
unpin: 取消置顶 | unpin
archive: 归档 | archive
unarchive: 取消归档 | unarchive
deposit: 充值 存款 存入 存钱 | deposit, top up, recharge
withdraw: 提现 取款 取出 取钱 支取 提取 | withdraw, withdrawal, cash out
buy: 入手 购置 购买 买 订购 选购 购 买入 下单 选购 | buy, purchase
sell: 出售 卖出 售卖 卖 | sell
borrow: 借 借入 借阅 | borrow
lend: 借出 出借 | lend
give_back: 归还 | give back
repay: 还款 偿还 还清 还贷 | repay, pay off, repayment
refund: 退款 退钱 退费 退回钱 | refund, money back
return: 退货 退回 | return, send back
exchange: 换货 调换 | exchange, swap
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
early: 提前 提早 早点 早一点 | early, ahead
late: 延后 推迟 延期 延迟 晚一点 | postpone, delay
fast: 快速 变快 加快 更快 加速 快一点 提速 | fast, quick, faster, speed up, quicker
slow: 慢 缓慢 卡顿 太慢 很慢 变慢 速度慢 很卡 太卡 变卡 好慢 好卡 | slow, slowly, run slow, run slowly, running slowly, sluggish, laggy, lag, lagging, takes forever, taking forever, slow down
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
foreign: 国际 国外 境外 海外 全球 出国 | international, internationally, abroad, overseas, foreign, worldwide
weekday: 工作日 平日 | weekday
weekend: 周末 双休日 周六日 周六周日 星期六日 | weekend, saturdays and sundays, saturday and sunday, saturday or sunday
day: 白天 日间 | daytime
night: 夜间 晚上 夜晚 | night, nighttime
morning: 上午 早上 早晨 | morning
afternoon: 下午 | afternoon
summer: 夏季 夏天 夏令 | summer
winter: 冬季 冬天 冬令 | winter
hot: 制热 热 加热 | hot, heat
cold: 制冷 冷 凉 | cold, cool
adult: 成人 成年人 大人 | adult, grown-up
child: 儿童 小孩 孩子 | child, children, kid
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
paid: 付费 付钱 收不收费 | paid
success: 成功 | success, succeed, successful
correct: 正确 | correct
wrong: 错误 错 填错 弄错 写错 输错 搞错 错了 | wrong, incorrect, mistaken, mistake
classstart: 上课 开课 |
shelf_on: 上架 |
shelf_off: 下架 |
geton: 上车 |
getoff: 下车 |
classend: 下课 结课 |
same: 相同 同样 一样 同一个 同一 | same, identical
different: 不同 不一样 区别 差别 差异 有何不同 | different, difference, differ
"""

EXCLUDING = """
on/off/pause pause/resume/off restore/backup/remove increase/decrease import/export upload/download upgrade/downgrade
include/exclude public/private personal/company allow/deny accept/deny receive/send block/unblock allow/block deny/unblock add/remove on/remove create/remove join/quit add/quit join/remove classstart/classend shelf_on/shelf_off geton/getoff
login/logout/register register/close_account bind/unbind connect/disconnect install/uninstall mount/unmount/uninstall
encrypt/decrypt compress/decompress lock/unlock freeze/unfreeze show/hide expand/collapse merge/split follow/unfollow
mute/unmute pin/unpin archive/unarchive deposit/withdraw buy/sell borrow/lend/give_back borrow/repay refund/return/exchange
push/pull promote/demote before/after more/less max/min earliest/latest first/last previous/next/today early/late fast/slow
large/small up/down left/right front/rear inside/outside online/offline domestic/foreign weekday/weekend day/night
morning/afternoon summer/winter hot/cold adult/child new/old male/female buyer/seller landlord/tenant outbound/inbound
incoming/outgoing master/replica ascending/descending free/paid correct/wrong same/different
"""

PLAIN = """
deleted: 删了 删除了 误删的 误删除的 已删除的 删除的 删掉的 被删除的 被删的 已删除 删了的 | deleted
update_: 更新 | update
change: 修改 更改 更换 变更 改成 改 换 编辑 改为 调整 | change, modify, edit, alter, replace, switch, make changes to
view: 查看 查询 查 看 查找 看到 浏览 | view, see, check, look up
apply: 申请 办理 办 提交申请 申办 | apply for, apply, request, application for, application
use: 使用 用 利用 | use, make use of
set: 设置 设定 配置 设为 设成 调到 调 | set, configure, set up, configuration, setting, settings
obtain: 获取 获得 得到 领取 拿到 | obtain, acquire, get
contact: 联系 找 联络 联系到 | contact, reach, get in touch with, get in touch, talk to, call, get ahold of
submit: 提交 交 递交 上交 | submit, hand in, turn in
support: 支持 提供 | support, offer, provide, available
restart: 重启 重新启动 | restart, reboot
reset: 重置 恢复出厂设置 恢复默认 | reset, factory reset
account: 账号 账户 帐号 帐户 户头 | account
password: 密码 口令 | password, passcode
notification: 通知 提醒 消息提醒 消息通知 推送通知 | notification, alert, reminder
renewal: 续费 续订 续期 | renewal
automatic: 自动 | automatic, auto, automatically
money: 钱 现金 | money, cash
select: 选择 选 挑 挑选 选取 | choose, select, pick
attend: 出勤 出席 到课 到场 | attend, attendance
time: 时间 | time
date: 日期 日子 | date
invoke: 调用 | invoke
hit: 触发 触发了 | hit, exceed
run: 运行 | run
fee: 费用 价格 价钱 资费 收费 | price, fee, cost, charge, rate
speed: 速度 网速 | speed
invoice: 开具发票 开发票 发票 | invoice, receipt
parcel: 快递 包裹 物流 | parcel, package, shipment
dispatch: 发货 出货 发出来 | dispatch, dispatched, ship out, send out
ship: 配送 送货 寄 送达 送到 | ship, deliver, delivery, shipping
arrive: 到账 到达 送达 到货 | arrive
shop: 店 店里 门店 店铺 店面 商店 实体店 | shop, store
goods: 商品 产品 货品 物品 | item, product, goods, merchandise
order_: 订单 | order
coupon: 优惠券 代金券 折扣券 | coupon, discount code, promo code, voucher
discount: 优惠 打折 折扣 | discount
member: 会员 | membership
damaged: 坏了 坏 损坏 破损 故障 | damaged, broken, defective, faulty
lost: 丢掉 掉了 丢了 丢失 遗失 丢 弄丢 不见了 | lost, missing, lose, losing, misplace
expire: 过期 到期 失效 有效期 | expire, expiry, expiration
forget: 忘记 忘了 不记得 | forget, forgot, forgotten
address: 地址 位置 在什么位置 | address, location, located
photo: 照片 相片 图片 | photo, picture, image
avatar: 头像 | avatar, profile picture, profile photo
name_: | name
name: 名字 昵称 用户名 名称 | username, user name, nickname, display name
screenshot: 截屏 截图 屏幕截图 | screenshot, take a screenshot, capture screen, capture my screen, capture the screen, screen capture
record: 记录 历史记录 历史 | history, record, log
chat: 聊天 对话 会话 聊天内容 | chat, conversation
friend: 好友 朋友 | friend
invite: 邀请 | invite, refer, invitation
team: 团队 小组 群组 工作区 工作空间 | team, group, workspace
staff: 客服 人工客服 在线客服 | customer service, customer support, support team, help desk, customer care
app: 应用 软件 程序 客户端 app | app, client
server: 服务器 主机 | server
computer: 电脑 计算机 笔记本 笔记本电脑 台式机 | computer, pc, laptop, notebook, desktop
website: 网站 网页 | website, site
storage: 存储 空间 内存 | storage, space
insufficient: 不足 不够 不够用 满了 | not enough, insufficient, full up
mirror: 镜像 镜像站 镜像源 软件源 | mirror
sync: 同步 | sync, synchronize
verify: 校验 验证 核对 核实 | verify, validate, check the integrity of
interface: 接口 api | api
limit: 限制 上限 限额 额度 配额 | limit, quota, allowance
timeout: 超时 | timeout, time out, timed out
error: 报错 异常 出错 | error
compute: 计算 算 核算 | calculate, compute, count
deploy: 部署 | deploy, run in, deployment
language: 语言 语种 | language
dark: 夜间模式 深色模式 暗色模式 黑暗模式 | dark mode, dark theme, night mode
pet: 宠物 | pet
dog: 狗 小狗 | dog, puppy
cat: 猫 小猫 | cat, kitten
appointment: 预约 约 |
book: 预订 预定 订 | book, reserve, reservation, booking
checkin: 入住 办理入住 办入住 | check in, check-in
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
redeem: 兑换 换取 换东西 换礼品 换购 | redeem
repair: 维修 修理 修 | repair, fix
onsite: 上门 | on-site, come to
warranty: 保修期 保修 质保 质保期 | warranty, warranty period
publish: 公布 发布 | publish, release
grade: 成绩 分数 | grade, score, mark
homework: 作业 | homework, assignment
exam: 考试 | exam
retake: 补考 重考 | retake, take again
course: 课程 选课 | course, class
school: 学校 | school
renew: 续借 | renew
copy: 复制 拷贝 | copy
move: 移动 转移 迁移 | move, migrate
transfer: 转账 汇款 | transfer, remit
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
location_open: 营业 开门 上班 开着 | open
location_close: 关门 打烊 下班 闭馆 | close
undo: 撤销 回滚 撤回 | undo, revert, roll back
people: 人 | people, person
minor: 未成年人 未成年 | minor, underage
stranger: 陌生人 | stranger
all: 所有 全部 每个 整个 全体 | all, every, each, entire, whole
only: 只 仅 只能 仅限 | only
batch: 批量 | bulk, batch, in bulk
default: 默认 | default
handover: 转让 移交 过户 | transfer ownership, hand over
convert: 转换 | convert
other_: 另外 | another
"""

QUESTIONS = """
how: 走什么流程 要走什么流程 如何 怎么 怎样 咋 怎么做 如何做 怎么弄 怎么操作 如何操作 如何进行 怎么才能 怎样才能 如何才能 有什么办法 什么办法 有什么方法 什么方法 有办法 有没有办法 有什么步骤 怎么个 咋样 咋样才能 咋才能 咋弄 咋整 怎么搞 步骤是什么 流程是什么 流程是怎样的 具体流程 步骤 流程 方法 教我 怎么样才能 的方法 的步骤 的流程 有哪些步骤 需要哪些步骤 什么流程 | how do i, how can i, how do you, how to, how can, how do, how does, how, how should i, how do we, how can we, how could i, how would i, how might i, what is the way to, what's the way to, what is the best way to, what's the best way to, best way to, easiest way to, is there a way to, is there any way to, any way to, what is the process for, what's the process for, what is the procedure for, what's the procedure for, what is the command to, what command, what do i need to do to, what is the application process for, what are the steps to, what are the steps for, what steps, steps to, steps for, process for, procedure for, how do i go about, how does one, how can one, what should i do to, what must i do to, what do i have to do to, what do i do to, show me how to, explain how to, the way to, a way to, guide to, instructions for, instructions on how to, help me, which way can i, by what means, how am i able to, what is the method for, method of, method for, how exactly
why: 为什么 为何 为啥 什么原因 是什么原因 怎么回事 是怎么回事 原因 怎么会 咋回事 原因是什么 啥原因 凭什么 何故 | why, what causes, why did, why is, what is the reason, how come, what's the reason, for what reason, reason for, what is causing, what's causing, what would cause, reason why
when: 什么时候 何时 几点 哪天 几号 啥时候 什么时间 几月 哪一天 几点钟 什么时刻 几时 哪个时间 什么日子 什么时候开始 是几点 是几号 是哪天 是什么时候 截至什么时候 | when, what time, what day, at what time, what date, on what date, on which day, which day, on what day, from when
howlong: 多久 多长时间 几天 多少天 多长 几个月 多少小时 几小时 多少时间 几个工作日 多少个工作日 几周 要多久 需要多久 几分钟 多少分钟 几年 多少年 多少个月 要几天 需要几天 几个星期 是几个月 是几年 是几天 是多久 是多长 是多长时间 是多少天 | how long, how long until, how long before, how many days, how soon, how many weeks, how many months, how many hours, how many minutes, how many business days, how many working days, how much time, how quickly, how fast, how many years, what is the time limit for, how long is, how long will it take
howoften: 更新频率 频率 多久一次 多久更新一次 多长时间一次 几天一次 隔多久 每隔多久 多久 更新一次 | how often, how frequently, how regularly, how many times, what is the frequency of, update frequency, frequency
where: 哪里 哪儿 在哪里 在哪儿 在哪 什么地方 在什么地方 何处 哪 位于哪里 位于何处 在何处 哪个位置 在哪个位置 哪边 在哪个地方 | where, in which place, whereabouts, in what place, in what location
whereto: 在哪里可以 哪里可以 哪里能 在哪里能 在哪能 去哪里 去哪 到哪里 在哪可以 去哪儿 上哪 上哪儿 到哪 哪儿能 哪儿可以 从哪里 从哪 从哪儿 在哪儿可以 在哪儿能 哪里有 去什么地方 | where can i, where do i, where should i, where to, where could i, where would i, where can we, where do we, where might i, where must i, where can, where do i go to, where am i able to, is there a place to, where do you go to
who: 谁 谁来 由谁 由谁来 什么人 哪些人 哪位 什么样的人 | who, whom, whose
howmuch: 多少钱 多少 几钱 多少费用 什么价格 价格是多少 费用是多少 啥价 怎么卖 几块钱 多少块 什么价位 | how much, how much does it cost, how much money
howmany: 几个 几次 多少个 多少次 几人 几个人 多少人 几台 多少台 几件 多少件 几张 多少张 几本 多少本 几位 几种 几家 | how many
which: 哪个 哪种 哪些 哪几个 哪几种 哪一个 哪家 哪款 | which
outcome: 会怎么样 会怎样 有什么影响 有什么后果 有影响吗 有没有影响 会有什么后果 会有什么影响 什么后果 有何影响 后果是什么 影响是什么 有啥影响 有啥后果 | what if, what happens if, what happens when, what happens after, what will happen if, what would happen if, what are the consequences of, what happens to, what will happen to, what are the effects of, what happens
remedy: 怎么办 怎么处理 如何处理 怎么解决 如何解决 该怎么办 应该怎么办 咋办 怎么应对 如何应对 如何是好 怎么补救 如何补救 怎样处理 怎样解决 该如何处理 咋处理 咋解决 怎么补 怎么修复 如何修复 该怎么处理 如何排查 怎么排查 有什么解决办法 解决办法 解决方法 | what should i do if, what should i do when, what should i do, what do i do if, what do i do when, what do i do, what can i do if, what can i do, what can i do when, what to do if, what to do when, what to do, how do i fix, how can i fix, how to fix, how do i solve, how do i resolve, how can i solve, how can i resolve, how do i deal with, how do i handle, how should i handle, what now, how to solve, how to resolve, how do i troubleshoot, how to troubleshoot, what am i supposed to do, what steps should i take if
define: 什么是 是什么意思 什么意思 啥是 啥意思 什么叫 指什么 指的是什么 怎么理解 何为 何谓 | what does it mean, what is meant by, what do you mean by, what is the meaning of, meaning of, definition of, what does it mean to
whatis: 是什么 是啥 是多少 | what is, what are, what does, what was, what are the, what is the
what: 什么 有什么 都有什么 有哪些 都有哪些 什么样 啥 什么样的 哪些东西 有啥 | what, what kind of, what sort of, what type of, what types of, what kinds of
must: 需不需要 要不要 用不用 是否需要 必须 一定要 是不是要 是不是需要 是否必须 必需 得 是否要 非得 是否必要 有必要 需 需要 | have to, need to, need, must, required, require, mandatory, necessary, compulsory, obligatory, obliged, needed, supposed to
can: 能不能 可不可以 能否 可否 可以 能 能够 可以吗 行吗 行不行 可行吗 是否可以 是否能 允不允许 让不让 是否允许 好不好 给不给 | can i, can, could i, could, is it possible to, may i, may, am i able to, can we, can you, can one, allowed, permitted, am i allowed to, is it okay to, is it ok to, is it allowed to, is it permitted to, is it fine to, ok to, okay to, acceptable, possible, is it possible, am i permitted to, is it ok if, is it okay if, would it be possible to, are you able to
will: 会不会 会 是否会 | will
whether: 是否 是不是 能否 可否 有没有 会不会 可以 能 吗 能够 可以吗 行吗 行不行 可行吗 么 有无 好吗 是否可以 是否能 是否有 是否支持 是否提供 允不允许 让不让 | can i, can, could i, could, do you, does, do, is there, are there, is it possible to, may i, am i, is, are, do i, will, would, did, may, am i able to, can we, do we, are you able to, are you, can you, can one, allowed, permitted, am i allowed to, is it okay to, is it ok to, is it allowed to, is it permitted to, do you guys, was, were, have you, has, is it fine to, ok to, okay to, acceptable, possible, is it possible, am i permitted to, do you have, do you offer, do you provide, is it ok if, is it okay if, would it be possible to, does it, any chance
"""

NEGATIONS = """
无法 不能 没法 失败 不成功 没成功 未成功 没办法 没有办法 不予 不给 不再 不愿 不肯 从不 从未 尚未 还没 还没有 不会再 不太能 未被 不能够 不可以 不可 不允许 不支持 不会 不用 不必 不需要 用不着 无需 无须 不必要 不想 不要 不让 不得 没有 没能 未能 并非 不 没 未 非 勿 无 莫 避免
| fail, failed, failure, unsuccessful, fail to, failed to, unable, not able to, refuse to, refuses to, couldnt, wouldnt, havent, hasnt, arent, werent, wasnt, anymore not, not, no, never, cannot, can't, cant, won't, wont, don't, dont, doesn't, doesnt, didn't, didnt, isn't, isnt, aren't, wasn't, weren't, haven't, hasn't, shouldn't, wouldn't, couldn't, unable to, unable, without, no longer, neither, nor, avoid, isn't possible
"""

NOT_NEGATIONS = """
不好意思 对不起 不管 不仅 不过 差不多 不久 不但 不锈钢 不同 不一样 不足 不够 不够用 不含 不包含 不包括 无理由 无线 无人 未成年 不然 不如 不止 不断 不错 不知道 不清楚 不明白 不懂 不小心 不良 没关系 非常 别人 未来 不记得 不动产 无锡 南无
"""

FILLERS = """
期间 这份 那份 剩余的 剩下的 剩余 剩下 一直显示 一直提示 总是提示 老提示 老是提示 下来 家里 我家 家中 一次 一位 一张 一台 一件 一份 一本 一名 一家 准备 请问 您好 你好 请教 问一下 问下 想问一下 想问下 想问 咨询一下 想咨询 咨询下 麻烦问下 麻烦问一下 请问一下 告诉我 我想知道 想了解 我想了解 求助 帮我 帮我看看 各位 大家 不想要了 不想用了 不要了 不想要 不需要了 不想用 迟迟 走流程 有人 的地方 清楚 刚买的 你家 你们家 贵公司 贵司 贵店 本人 该如何 刚 刚刚 刚才 一直在 个 啦 哦 哈 嗯 那么 通常 平时 正常 上面 这边 那边 一点 起来 成为 变成 对 跟 当 从而 成 为 于 及时 曾 曾经 快要 即将 具体怎么 到底怎么 究竟怎么 全 总 每次 某个 某 才行 才可以 就行 需求 想法 比较 特别 挺 一样的 行 可 其中 由于 因为 因 而且 所以 于是 若 若是 假如 要是 的话 万一 一旦 当时 后来 任意 随便 随时 直接 单独 主要 基本 完 好 好了 完全 真 实在 竟然 居然 老是会 说 讲 处 地 如 以来 起 呗 哟 喔 咯 滴 小伙伴 大神 谁知道 有人知道 知道吗 我想 我要 我想要 我想问 我需要 想要 麻烦 应该 该 要 想 请 一下 一个 的 了 呢 啊 吧 呀 嘛 把 将 都 也 就 还 我 你 您 你们 我们 咱们 他 她 它 我的 你的 这个 那个 这 那 些 是 在 有 得 着 过 吗 自己 如果 突然 大概 大约 大 一般 里 上 掉 进行 时候 现在 目前 究竟 到底 谢谢 和 与 时 所 被 最近 已经 已 却 但 其 并 想知道 才能 才 到 中 们 之
很 太 好像 总是 一直 老是 操作 具体 相关 有关 关于 对于 可能 方便 帮忙 帮 怎 才 再 又 最后 那么 这样 为了 以及 及 或 或者 还是 并且 而 则 该 此 任何 一些 有点 真的 希望 打算 准备 尝试 试着
| i no longer want, i don't want, any more, anymore, by itself, by themselves, automatically by itself, somewhere, someplace, beforehand, in advance, ahead of time, still, yet, even, ever, already, then, during, while, within, via, through, using, make, go, going, happen, happened, happening, like, wish, hope, hoping, looking to, look to, wonder, wondering, was wondering, i was wondering, i wonder, know, let me know, i would like to know, help, assist, explain, exactly, specific, certain, current, total, overall, directly, properly, seem, way, somehow, since, because, ok, okay, please help, can you tell me, anybody, anyone, anything, something, one, ones, many, much, such, but, not sure, i'm, im, i've, ive, i'll, you're, it's, its, there's, that's, what's up, what's wrong with, being, get to, got, us, onto, towards, around, having, done, doing, let, lets, supposed, exact, given, thru, good, hey, folks, quick question, question, dear, kindly, i am, i have, i do, we have, wish to, i wish to, intend to, i plan to, plan to, trying, try, attempt, attempting, attempt to, might, shall, were to, if i, after i've, been able to, can be, to be, be able to, be, itself, myself, yourself, ourselves, themselves, yours, mine, ours, possible, regarding, about, currently, right now, actually, trying to, try to, able to, go about, any of, own, kind of, is left, are left, remaining, very, really, always, keep, a, an, the, my, your, our, their, his, her, its, i, you, we, they, he, she, it, me, us, please, of, for, in, on, at, with, and, or, is, are, was, were, be, been, am, do, does, did, have, has, had, will, would, should, could, can, there, this, that, these, those, if, some, any, someone, just, i'm trying to, i am trying to, looking for, i'd love to, want, wanna, gonna, i want, want to, would like to, i want to, i'd like to, i need to, so, very, also, too, hi, hello, thanks, thank you, tell me, could you tell me, permanently, new one, by, as, s, all, when it, then, when i, here
"""

SOFT = """
come: 来 |
go: 去 |
goup: 上去 上来 |
godown: 下去 下来 |
goin: 进去 进来 |
goout: 出去 出来 |
information: 信息 情况 内容 | information, info, details
service: 服务 | service
period: 期限 | period
function: 功能 | feature, function, functionality
option: 选项 | option
problem: 问题 | problem, issue, trouble
thing: 事情 事 | thing, matter
"""

DIRECTIONS = """
from: 从 自 由 | from
to: 到 给 向 往 | to, into, onto, toward
than: 比 | than
versus: 欠 告 替 | sue, owe
"""

IRREGULAR = """
forgot/forget forgotten/forget sent/send bought/buy broke/break broken/break took/take taken/take kept/keep found/find made/make
went/go gone/go came/come chose/choose chosen/choose wrote/write written/write saw/see seen/see sold/sell spent/spend stole/steal
brought/bring built/build caught/catch flew/fly froze/freeze frozen/freeze gave/give given/give held/hold hid/hide hidden/hide
knew/know known/know lent/lend meant/mean met/meet ran/run shown/show spoke/speak spoken/speak taught/teach withdrew/withdraw
withdrawn/withdraw cancelled/cancel cancelling/cancel canceled/cancel canceling/cancel cancellations/cancel cancellation/cancel
travelling/travel licence/license favourite/favorite colour/color centre/center cheque/check programme/program organisation/organization
deleted/deletd erased/deletd charging/chargin charged/charged licences/license children/child women/woman men/man
note/memo notes/memo care/caretake cares/caretake plane/airplane planes/airplane news/newspaper logging/log logged/log began/begin begun/begin ate/eat eaten/eat drove/drive driven/drive wore/wear worn/wear won/win
thought/think told/tell stood/stand slept/sleep swam/swim rang/ring grew/grow grown/grow led/lead shut/shut
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
