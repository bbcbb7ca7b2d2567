// Another implementation of yamux, at the other end of a loopback connection. How to call it: peer.mjs PORT ROLE.
//
// As `server` it serves every stream by its first byte: `E` sends back all that follows, `S` sends back the SHA-256 of all
// that follows, once that has ended, `R` resets the stream, and `G` makes it go away. As `client` it has streams
// echoed, a large one and many small ones, breaks one off, and says on standard output what came back.

import { createHash } from 'node:crypto'
import { connect } from 'node:net'
import { yamux } from '@chainsafe/libp2p-yamux'

const [port, role] = process.argv.slice(2)
const SMALL = { streams: 100, bytes: 5_000 }
const LARGE = 6 * 2 ** 20
const log = Object.assign(() => {}, { enabled: false, error() {}, trace() {}, newScope: () => log })

const socket = connect({ host: '127.0.0.1', port: Number(port), noDelay: true })
const muxer = yamux()({ logger: { forComponent: () => log } }).createStreamMuxer({
  direction: role === 'client' ? 'outbound' : 'inbound',
  onIncomingStream: (stream) => serve(stream).catch((error) => stream.abort(error)),
})

async function * bytes (stream, first) {
  if (first.byteLength > 1) yield first.subarray(1)
  for (;;) {
    const { value, done } = await stream.next()
    if (done) return
    yield value.subarray()
  }
}

async function serve (stream) {
  const source = stream.source[Symbol.asyncIterator]()
  const first = (await source.next()).value.subarray()
  const rest = bytes(source, first)
  switch (String.fromCharCode(first[0])) {
    case 'E':
      return await stream.sink(rest)
    case 'S': {
      const hash = createHash('sha256')
      for await (const piece of rest) hash.update(piece)
      return await stream.sink([hash.digest()])
    }
    case 'R':
      return stream.abort(new Error('as it was asked to'))
    case 'G':
      return await muxer.close()
  }
}

async function echoed (size) {
  const sent = Buffer.alloc(size, `${size} bytes that are not all alike; `)
  const stream = await muxer.newStream()
  const sending = stream.sink((async function * () {
    for (let start = 0; start < size; start += 50_000) yield sent.subarray(start, start + 50_000)
  })())
  const pieces = []
  for await (const piece of stream.source) pieces.push(piece.subarray())
  await sending
  return Buffer.concat(pieces).equals(sent)
}

async function ask () {
  const large = await echoed(LARGE)
  const small = await Promise.all(Array.from({ length: SMALL.streams }, (_, index) => echoed(SMALL.bytes + index)))
  const broken = await muxer.newStream()
  broken.sink((async function * () { yield Buffer.from('x'); await new Promise(() => {}) })()).catch(() => {})
  for await (const _ of broken.source) break
  broken.abort(new Error('on purpose'))
  const roundTrip = await muxer.ping()
  await muxer.close()
  return { large, small: small.filter(Boolean).length, pinged: roundTrip >= 0 }
}

async function send () {
  for await (const piece of muxer.source) {
    if (!socket.write(piece.subarray())) await new Promise((resolve) => socket.once('drain', resolve))
  }
  socket.end()
}

socket.on('error', () => {})
const moving = Promise.allSettled([muxer.sink(socket), send()])
if (role === 'client') console.log(JSON.stringify(await ask()))
await moving
