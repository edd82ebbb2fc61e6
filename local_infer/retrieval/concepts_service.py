"""Concepts of shops, accounts, bills, software, networks and devices, Chinese and English: words that say the same there.

A line is as in `antonyms.py`; a name may be used again to add words to it. A thing with only one name in one language is
listed so that its name in the other, or its parts, are not read apart (空调 is not 空 and 调).
"""

from __future__ import annotations

# ruff: noqa: E501 (a concept is a line)

SERVICE = """
change: 改动 变动 改一下 改掉 改下 换成 换掉 换个 改变 调整为 变更为 更正 改一改 换一个 换一换 | amend, revise, adjust, make a change to, make changes, make a change, edit, correct
correct_: 纠正 改正 | correct
view: 看看 看一下 查一下 查一查 查到 查阅 查收 翻看 查得到 知道 了解 得知 看得到 浏览 | find out, look at, inspect, look through, learn, know
find: 找到 寻找 | find, locate, look for, search for
search: 搜索 检索 搜 搜一下 | search
apply: 办 办理手续 提出申请 申领 申办 报办 办一张 办一个 办张 办个 补办申请 | apply, submit an application, put in for, put in a request, make a request, get approved for
obtain: 拿 取得 领 领到 拿到手 获得 要到 索取 得到 弄到 | get, obtain, receive a copy of, get a copy of, get hold of, acquire, collect, pick up, claim
give: 赠送 送给 赠予 转赠 | give, gift, give away
use: 使用方法 用法 使用说明 怎么用 用得了 用到 用来 用掉 应用于 | using, utilize, utilise, make use of, take advantage of, usage
submit: 上报 呈交 提报 交上去 | send in, file, lodge, turn in, put in
fillin: 填写 填 填报 录入 输入 填上 | fill in, fill out, enter, input, type in, complete a form
form: 表格 表单 申请表 | form
contact: 联系上 找到人工 打给 咨询 求助 | get hold of, speak to, speak with, get in contact with, get through to, reach out to, contact, chat with
staff: 人工 真人客服 客服人员 人工服务 客服中心 客户服务 客服电话 服务热线 客服热线 热线 | customer service, support, support staff, a human, human agent, a real person, live agent, representative, customer service representative, support agent, live person, helpdesk, hotline
restart: 重新开机 再启动 重开 重启一下 | power cycle, restart
reset: 初始化 重设 重新设置 恢复到出厂设置 还原设置 | reset to factory settings, factory settings, restore factory settings, restore to factory settings, reset to default, initialize
account: 账号信息 个人账号 用户账号 账 | user account, profile account, login account
profile: 个人资料 个人信息 资料页 个人主页 基本资料 | profile, personal information, personal details, personal info
password: 登录密码 登陆密码 | pass word, login password
pincode: pin码 | pin code, pin number
pay_password: 支付密码 付款密码 交易密码 取款密码 | payment password
code_: 短信验证码 验证码 校验码 短信验证码 动态码 | verification code, one time code, one time password, otp, security code, confirmation code, sms code
two_factor: 两步验证 二步验证 双重验证 双因素认证 双因子认证 二次验证 两步认证 双重认证 多因素认证 | two factor authentication, two step verification, 2fa, mfa, two factor, multi factor authentication, 2 step verification, two-step authentication
identity: 实名认证 实名 身份认证 身份验证 实名制 | identity verification, verify my identity, verify identity, id verification, real name verification, confirm my identity
fullname: 姓名 真名 真实姓名 | full name, real name, legal name, last name, surname
name: 网名 用户昵称 名儿 名 | display name, screen name, user id, login name
email: 邮箱 电子邮箱 邮件地址 邮箱地址 电子邮件地址 email e-mail | email, e mail, email address, e mail address
mail_: 邮件 电子邮件 信件 | mail, letter
newsletter: 推广邮件 营销邮件 广告邮件 订阅邮件 促销邮件 | newsletter, marketing emails, promotional emails, promotional email, marketing email, mailing list
sms: 短信 信息短信 短消息 | sms, text message, text
phone_number: 手机号 手机号码 电话号码 联系电话 号码 电话 联系方式 | phone number, mobile number, telephone number, cell number, contact number, telephone, contact details, contact information
phone: 手机 移动电话 智能手机 | phone, mobile phone, cell phone, smartphone, mobile, cellphone, handset
device: 设备 装置 机器 终端 | device, machine, gadget
tablet: 平板 平板电脑 | tablet
language: 语种 界面语言 显示语言 语言界面 | interface language, display language
english: 英文 英语 英文版 | english
chinese: 中文 汉语 中文版 | chinese
interface_: 界面 | interface
dark: 深色 暗黑模式 深色主题 夜间主题 黑暗主题 暗色主题 黑夜模式 | dark mode, dark theme, night mode, night theme
fontsize: 字体大小 字号 字体 文字大小 字 | font size, text size, font, size of the text, size of text, size of the font
theme: 主题 皮肤 外观 | theme, skin, appearance
setting_: 设置项 设置页面 | settings page
notification: 消息推送 提示 提醒通知 推送消息 弹窗通知 通知消息 推送提醒 提醒我 | notify, remind, push notification, alerts, push message, push notifications, notify me
ad: 广告 弹窗 弹窗广告 | ad, ads, advert, advertisement, advertising, popup, pop up
message: 消息 私信 留言 站内信 | message, direct message, dm, private message
comment: 评论区 | comment
post: 帖子 动态 发帖 文章 发的内容 朋友圈 | post
photo: 相册图片 相 图 图像 | photograph, photos, pic, snapshot
video: 视频 影片 录像 | video, clip, footage
music: 音乐 歌曲 歌 | music, song
file: 文件 文档 档案 | file, document
folder: 文件夹 目录 | folder, directory
attachment: 附件 | attachment
size: 大小 尺寸 尺码 码数 多大 | size
color: 颜色 色 款式颜色 | color, colour
quality: 质量 品质 | quality
cache: 缓存 | cache, cached data, cached files
cookie: cookie 浏览器缓存 | cookie, cookies
history: 历史记录 | history
storage: 存储空间 内存空间 磁盘空间 硬盘空间 储存空间 容量 云空间 | storage space, disk space, capacity, disk storage, memory
disk: 磁盘 硬盘 | disk, hard drive, hard disk, drive
quota_full: 内存不足 空间不足 存储满了 空间满了 容量不足 存储空间不足 内存不够 空间不够 内存满了 存储空间满了 | out of storage, out of space, storage full, storage is full, disk full, disk is full, run out of storage, run out of space, running out of space, running out of storage, no space left, out of disk space
hang: 死机 卡死 卡住 卡住不动 | hang, hangs, freezes up
slow: 运行太慢 运行慢 运行缓慢 太慢 很慢 变慢 卡顿 很卡 太卡 慢吞吞 慢 速度慢 缓慢 反应慢 | slow, sluggish, laggy, lag, lagging, takes forever, taking forever, taking so long, so slow
crash: 闪退 崩溃 崩了 自动退出 | crash, crashing, crashed, quit unexpectedly, shut down unexpectedly
blackscreen: 黑屏 屏幕不亮 不亮 | black screen, blank screen
screen: 屏幕 显示屏 荧幕 | screen, display
cracked: 碎了 碎 裂了 裂 摔碎 摔裂 | cracked, crack, smashed, shattered
notworking: 失灵 故障 出故障 出问题 出毛病 出了问题 有问题 没反应 没有反应 不好使 不好用 用不了 不能用 无法使用 不能使用 不工作 不起作用 不灵 没用 不管用 用不成 使用不了 | out of order, malfunction, malfunctioning, stop working, stopped working, not working, doesn't work, does not work, isn't working, won't work, not work, not functioning, dead, don't work, not responding, unresponsive, having trouble, have trouble, trouble with, having problems, having issues, issue with, issues with, problems with, problem with, having difficulty, faulty, glitch, glitchy, acting up, playing up
damaged: 质量问题 有质量问题 品质问题 有毛病 有瑕疵 有破损 摔坏 弄坏 有缺陷 有故障 失效了 使不了 无法正常使用 无法工作 | break, broke, busted, defect
lost: 不见了 找不到 遗失了 不翼而飞 遗落 落下 被偷 被盗 被偷了 失窃 | lost, misplaced, went missing, cannot find, can't find, can not find, left behind, leave behind, stolen, disappeared, gone missing
hacked: 盗号 被盗号 账号被盗 号被盗 被黑 被黑客攻击 被盗用 | hacked, compromised, hijacked, been hacked
forget: 忘 忘掉 想不起来 记不得 记不住 记不起来 不记得了 想不起 | can't remember, cannot remember, don't remember, do not remember, can not remember, forgetting, no longer remember, forgot, lost my password
error: 错误码 错误代码 报错信息 错误提示 报错码 | error code, error message
wrong: 填错 写错 错了 搞错 输错 不对 有误 弄错了 写错了 填错了 发错 寄错 送错 | typo, made a mistake, got wrong, inaccurate, misspelled, incorrectly, not right, not correct, isn't right, isn't correct
order_: 单子 单号 订单号 订的东西 买的东西 | purchase, my purchase
placeorder: 下单 下订单 订购 提交订单 拍下 | place an order, place my order, placing an order, make an order, order online
goods: 宝贝 货 货物 东西 买的商品 单品 | merchandise, things, stuff, article, good
parcel: 包裹信息 快件 邮包 物流信息 物流状态 快递信息 快递单 物流单 货运 快递包裹 | delivery parcel, packet, shipment, consignment
track: 跟踪 追踪 物流查询 查物流 查快递 快递到哪了 快递到哪里了 快递到哪儿了 到哪了 到哪里了 到哪儿了 | track, trace, tracking, follow my order, status of my delivery, tracking information
ship: 派送 派件 寄出 发出 投递 快递寄送 递送 邮寄 寄送 运送 运输 寄过来 | shipped, deliver, delivered, mail out, get delivered, be delivered
courier: 快递员 送货员 配送员 骑手 外卖员 | courier, delivery driver, delivery person, rider, delivery man
takeout: 外卖 | takeaway, takeout, food delivery
pickup: 自提 自取 上门自提 到店自取 到店取货 | pick up in store, store pickup, collect in store, click and collect, in-store pickup, pick it up myself, self pickup, pick up my order in store
shipping_method: 快递公司 物流公司 配送方式 什么快递 哪家快递 | carrier, shipping method, delivery method, shipping company, courier company, delivery company
arrive: 送到 抵达 送来 到手 到账时间 收货 到货时间 入账 打到 退回到 | arrive, arrival, get here, show up, come, turn up, be credited, reach
receive: 收到货 收 收取 拿到 收到了 | receive, received, get, receipt of
sign: 签收 | signed for, sign for, sign, marked as delivered
shipaddress: 收货地址 送货地址 配送地址 收件地址 寄送地址 邮寄地址 | shipping address, delivery address, mailing address, address for delivery
address: 住址 具体位置 所在地 详细地址 位置在 | address, location, located, situated
stock: 库存 现货 有货 存货 到货 | in stock, stock, inventory, have in stock, available in stock
outofstock: 缺货 没货 无货 售罄 断货 卖完 卖完了 卖光 补货 售完 没有货 没货了 | out of stock, sold out, restock, back in stock, unavailable
preorder: 预售 预购 | preorder, pre order, presale
cart: 购物车 购物篮 | cart, shopping cart, basket, shopping basket
wishlist: 收藏 收藏夹 心愿单 | favorite, favourite, wishlist, wish list, bookmark
fake: 正品 真货 真品 假货 真假 | authentic, genuine, original, counterfeit, fake
warranty: 保修 质保 保修期限 质保期 保修时间 保修期 三包 | warranty, guarantee, warranty period, guaranteed, under warranty, warranted
expire: 过期了 过期日 失效 有效 有效期 有效期限 截止 到期日 到期时间 作废 过期时间 有效时间 | expire, expiration, expiry, valid, validity, run out, good for, expires, expiration date, expiry date, remain valid, stay valid
deadline: 截止日期 截止时间 期限 最后期限 截止日 | deadline, due date, cutoff, cut-off, due
coupon: 优惠码 折扣码 抵用券 兑换码 券 促销码 优惠卷 折扣劵 满减券 | promo, discount codes, promotional code, promotion code, coupon code, vouchers, promo codes, redeem code
giftcard: 礼品卡 礼品券 购物卡 储值卡 礼物卡 | gift card, gift certificate, gift voucher
discount: 折扣 便宜 减免 优惠活动 打折活动 促销 活动优惠 优惠价 促销活动 特价 减价 打几折 优惠吗 折 | discount, sale, promotion, special offer, deal, cheaper, reduced price, price reduction, special price, concession, reduction, on sale
price: 单价
fee: 收钱 花费 价位 售价 要钱 花钱 收费 手续费 费率 服务费 价格表 定价 收费情况 费 多少费用 什么价 | price, fees, charge, charged, charges, pricing, prices, how expensive, expensive, service charge, costs, cost me
free: 不要钱 不收费 不收钱 免费用 免费的 不花钱 不用钱 白送 | free of charge, at no cost, no charge, for nothing, without charge, without paying, complimentary, no cost, cost free, for free, without a fee, no fee
paid: 要收费 需要付费 收不收费 | cost money, charge for, charged for, have to pay
downpayment: 定金 订金 首付 | down payment
deposit_: 押金 保证金 | security deposit, deposit
price_protect: 价保 保价 降价补差 补差价 价格保护 | price match, price matching, price protection, price adjustment
customs: 关税 | duty, customs duty, duties, import duty, customs
tax: 税 税费 消费税 税金 | tax, taxes, vat
vatinvoice: 增值税专用发票 专用发票 专票 增值税发票 增值税专票 | vat invoice
einvoice: 电子发票 电子票 | e-invoice, electronic invoice, einvoice
invoice: 票据 开发票 开票 发票抬头 开张发票 单据 收据 | tax invoice, bill of sale, proof of purchase
title: 抬头 | title
refund: 退款到账 退还 退回来 返还 退我钱 退费 退款 退掉的钱 把钱退 钱退 退全款 | refund, refundable, reimburse, reimbursement, get my money back, money refunded, get refunded, get a refund, refunded, money back
return: 退掉 退还商品 退 退货退款 退换 退换货 退回商品 退回去 退回来的货 | send back, return, take back, bring back
exchange: 换一件 换个 换货 更换商品 调货 换尺码 换大小 | exchange, swap for
noreason: 无理由退货 七天无理由 | no questions asked return
policy: 政策 规定 规则 条款 制度 规章 | policy, rule, regulation, terms
review: 评分 打分 差评 好评 写评价 点评 | rating, comment on, write a review, leave a review, rate
appeal: 申诉 上诉 | appeal, contest, dispute
report: 反映 举报一下 揭发 维权 | complaint, make a complaint, file a complaint, lodge a complaint, flag, raise a complaint, file a report
feedback: 反馈 建议 提建议 意见 反馈意见 提意见 | feedback, suggestion, suggest, give feedback, comments
bug: 漏洞 bug | bug, glitch
fraud: 诈骗 骗 受骗 被骗 上当 骗子 | scam, fraud, scammed, phishing, cheated, scammer
plan_: 套餐 方案 | plan, package, tier
membership_level: 会员等级 等级 会员级别 | membership level, membership tier, level, rank
subscription: 订阅服务 订阅计划 | subscription
renewal: 续约 续费用 续会员 延期使用 自动扣款 扣费 自动扣费 自动续订 自动续期 | renew, auto renew, auto-renewal, renewing, renewals, recurring payment, recurring billing, auto renewal
trial: 试用 试用期 体验版 免费试用 免费体验 | trial, free trial, trial period, try for free, try before buying
pay: 结账 付费 付账 交钱 付钱 买单 付 缴纳 缴 交 缴款 付款方式付 扣款 结算 | pay, check out and pay, make a payment, settle, payment, paying
payment_method: 支付方式 付款方式 支付渠道 付款渠道 结算方式 支付方法 付款途径 | payment method, method of payment, form of payment, payment option, payment type, way to pay, ways to pay
bank_card: 银行卡 储蓄卡 借记卡 卡 | bank card, debit card
installment: 分期 分期付款 分几期 | installment, instalment, pay in installments, pay monthly, payment plan, installments, instalments
double_charge: 重复扣款 重复扣费 扣了两次 扣了两次钱 多扣 多扣了 扣两次 重复收费 重复支付 多收 多扣钱 扣了两次款 | charged twice, double charged, billed twice, duplicate charge, double billed, charged double, overcharged, double charge, charged two times, charged more than once
charged: 扣钱 被扣费 扣了钱 扣款了 被扣款 | been charged, debited, deducted
bill: 账单明细 对账单 流水 账目 消费记录 交易记录 交易明细 消费明细 帐单 | statement, billing statement, transaction history, transaction record, transactions, account statement
balance: 余额 剩余金额 还剩多少钱 | balance, how much is left, remaining balance
wallet: 钱包 | wallet
points: 积分值 会员积分 奖励积分 分值 | loyalty points, rewards, reward, rewards points, bonus points, point
redeem: 兑 换礼品 抵扣 兑现 兑换礼品 抵现 | redeem, cash in, spend points, convert points, trade in
invite: 邀 拉好友 拉人 推荐好友 | invite, refer, bring in
blacklist: 黑名单 | block list, blocklist
friend: 好友列表 朋友们 | friend, contact, buddy
share: 分享 共享 转发 共用 | share, sharing, forward
together: 一起 同时 共同 一块 | together, at the same time, simultaneously, at once, concurrently
member_: 成员 组员 队员 人员 | member, teammate, team member
admin: 管理员 | admin, administrator
role: 权限 角色 | role, permission, access right, access rights, privilege
user: 用户 使用者 | user
subaccount: 子账号 子账户 附属账号 小号 | sub account, subaccount, secondary account, child account
app: 手机软件 应用程序 小程序 客户端软件 软件 程序 | app, software, client, program, mobile app
version: 版本 版 版本号 | version, release version
latest_version: 最新版 最新版本 新版本 新版 | latest version, newest version, new version, up to date version
update_: 更新到 升级到
phonebill: 话费账单 | phone bill
website: 官网 主页 网址 网站首页 | web site, homepage, web page, webpage, site, url, web address
link_: 链接 连结 | hyperlink, url
browser: 浏览器 | browser, web browser
qrcode: 二维码 扫码 | qr code, scan code
network: 网 网络 上网 互联网 宽带 | network, internet, broadband, web connection, internet connection, connection
wifi: 无线网 无线网络 wifi wi-fi 无线 无线上网 | wifi, wi fi, wireless, wireless network, wireless internet
router: 路由器 路由 | router
offline_: 没网 断网 没有网 没有网络 连不上网 上不了网 网断了 没网络 没信号 无网络 连不上网络 | no internet, no network, no internet connection, no signal, no connection
bluetooth: 蓝牙 | bluetooth
headphones: 耳机 蓝牙耳机 耳麦 | headphone, headset, earphone, earbud, headphones, earphones, earbuds
speaker: 音箱 音响 扬声器 喇叭 | speaker, loudspeaker
sound: 音 声 没声 响声 | sound, audio
volume: 音量 声音大小 | volume, loudness
microphone: 麦克风 话筒 麦 | microphone, mic
camera: 摄像头 相机 摄像机 镜头 | camera, webcam
battery: 电池 电量 电 | battery, power, charge
batterylife: 续航 续航时间 待机时间 耗电 掉电 费电 | battery life, battery drain, battery lasts
charging: 充电 充 | charging, charge, recharge battery
charger: 充电器 充电头 充电线 | charger, charging cable, power adapter
plug: 插头 插座 | plug, socket, outlet
keyboard: 键盘 | keyboard
mouse: 鼠标 | mouse
printer: 打印机 | printer
monitor: 显示器 | monitor
tv: 电视 电视机 | tv, television
remote_: 遥控器 遥控 | remote control, remote
ac: 空调 空调机 冷气 | air conditioner, air conditioning, aircon, ac, a c
fridge: 冰箱 | fridge, refrigerator
washer: 洗衣机 | washing machine, washer
dishwasher: 洗碗机 | dishwasher
vacuum: 吸尘器 扫地机 扫地机器人 | vacuum cleaner, vacuum, robot vacuum
waterheater: 热水器 | water heater, boiler
heater: 暖气 取暖器 | heater, heating, radiator
filter: 滤芯 过滤器 过滤网 滤网 | filter
watch_: 手表 智能手表 | watch, smartwatch, smart watch
leak_: 漏水 渗水 漏 | leak, leaking, dripping, water leak
noise: 噪音 噪声 很吵 太吵 响 吵 异响 | noise, noisy, loud, loud noise
clean: 清洁 清洗 打扫 擦 洗 | clean, wash, cleaning, cleanup
manual: 说明书 使用手册 手册 用户手册 操作指南 | manual, user guide, user manual, instructions, instruction manual, guide, handbook
tutorial: 教程 新手教程 指南 入门 | tutorial, getting started, walkthrough
reissue: 补办 补卡 补 重办 补发 重新办理 补领 | replacement, reissue
benefit: 权益 好处 特权 福利 优点 | benefit, perk, advantage, privilege
bear: 承担 负担 | bear, cover the cost of
access: 访问 进入 | access
sort_: 分类 归类 | sort, classify
weight: 重量 重 | weight, weigh, heavy
system: 系统 操作系统 | system, operating system, os
browserhistory: 浏览记录 浏览历史 | browsing history, browser history, web history, search history
part: 配件 零件 附件配件 备件 | spare part, part, accessory, accessories, replacement part
repair: 修理好 修好 修一下 报修 检修 保养 修复 送修 返修 | get repaired, mend, repaired, fixing, repairing, get fixed, servicing, service
technician: 师傅 维修工 技师 工程师 | technician, engineer, repairman, mechanic
onsite: 上门服务 到家 上门来 | on site, onsite, home visit, at my home, come to my house, come to my home, to my house, at home
install: 装 安上 怎么装 | install, set up
setup: 安装调试 设置好 | set up, setup
import: 载入 导进 | bring in
export: 导出来 输出 | export, extract data
backup: 备一份 备份一下 | back up, backup, make a copy of
restore: 复原 找回来 恢复回来 恢复原来 弄回来 拿回 拿回来 | recover, get back, regain, bring back, undelete, retrieve, recovery
loginfail: 登不上 登录不上 登不上去 登录不了 登不了 无法登录 登录失败 不能登录 登陆不了 登不进去 进不去 登录不进去 登陆不上 无法登陆 | can't log in, cannot log in, unable to log in, can't login, can't sign in, cannot sign in, unable to sign in, login fail, login failed, couldn't log in, won't let me log in, not able to log in, locked out, trouble logging in, trouble signing in, problem logging in, problems logging in, login not working, fail to log in, failing to log in, unable to login
nocode: 收不到验证码 没收到验证码 验证码收不到 验证码没收到 没有收到验证码 验证码没来 接收不到验证码
publish: 出来了 公布出来 | come out, released, be posted, posted, announce, announced
sync: 同步一下 自动同步 | sync, synchronise, synchronization, in sync
api_key: api密钥 密钥 接口密钥 api key api秘钥 apikey | api key, api keys, access key, secret key
token: 令牌 访问令牌 | token, access token
ratelimit: 速率限制 限流 频率限制 调用限制 请求限制 | rate limit, request limit, throttle, throttling, rate limits
request_: 请求 | request
concurrency: 并发 并发数 | concurrency, concurrent, parallel
database: 数据库 | database, db
log: 日志 | log
cluster: 集群 | cluster
node: 节点 | node
certificate: 证书 | certificate
domain: 域名 | domain, domain name
port: 端口 | port
environment: 环境 | environment
variable: 变量 | variable
command: 命令 指令 | command
script: 脚本 | script
code: 代码 源码 源代码 | code, source code, source
branch: 分支 | branch
repository: 仓库 代码库 | repository, repo
model: 模型 | model
documentation: 文档中心 接口文档 开发文档 使用文档 | documentation, docs
sdk: 开发包 sdk | sdk, library
stream: 流式 流式输出 流式响应 | stream, streaming
response: 响应 回应 | response, reply
"""
