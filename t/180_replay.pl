# The judge of load tests (RegPilot::Replay) is judged: what it must find, to the
# microsecond, and what it must let pass.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Replay;
use Test::More;

# What became of the calls of one key: limits as RegPilot::Replay takes them, and
# [ sent, received, outcome ] in seconds.
sub replay
{
	my ($limits, @calls) = @_;
	my $replay = RegPilot::Replay->new(flush_interval => 1_000_000);
	$replay->limit(0, @$_) foreach @$limits;
	$replay->add(0, $_->[0] * 1e6, $_->[1] * 1e6, $_->[2] // 'ok') foreach @calls;
	return $replay;
}

my @two = ([ 100, 100.5 ], [ 101, 101.5 ]);
is(replay([ [2] ], @two)->excess(0), '', 'two under a limit of two');
like(replay([ [1] ], @two)->excess(0), qr/^1 windows, .* 2 under a limit of 1$/, 'two under a limit of one');
like(replay([ [1] ], [ 100, 100.5 ], [ 158, 159.999999 ])->excess(0), qr/./, 'within a minute for certain');
is(replay([ [1] ], [ 100, 100.5 ], [ 158, 160 ])->excess(0), '', 'perhaps not within a minute');
is(replay([ [undef] ], @two)->excess(0), '', 'no limit');
is(replay([ [1] ], $two[0], [ 101, 101.5, 'lost' ])->excess(0), '', 'one without an answer is perhaps refused');
like(replay([ [2], [ 1, 100.6e6, 100.9e6 ] ], @two)->excess(0), qr/./, 'after the limit was lowered');
is(replay([ [2], [ 1, 100.6e6, 101.1e6 ] ], @two)->excess(0), '', 'while it was lowered');
is(replay([ [1], [ 2, 101.2e6, 101.9e6 ] ], @two)->excess(0), '', 'while it was raised');
like(replay([ [1], [ 2, 101.6e6, 101.9e6 ] ], @two)->excess(0), qr/./, 'before it was raised');
is(replay([ [2], [ 1, 100.6e6, 100.9e6 ] ], [ 100, 101.2 ], $two[1])->excess(0), '', 'either may be the last');
is(replay([ [undef], [ 1, 100.6e6, 100.9e6 ] ], @two)->excess(0), '', 'without a limit, no place was taken');

my @refused = ([ 100, 100.5 ], [ 101, 101.5, 'rate_limited' ]);
is(replay([ [1] ], @refused)->denied(0), '', 'refused with a full window');
like(replay([ [2] ], @refused)->denied(0), qr/^1 refusals, .* 1 under a limit of 2$/, 'refused with a place free');
is(replay([ [2] ], @refused, [ 101, 101.5, 'lost' ])->denied(0), '', 'which one without an answer may have taken');
like(replay([ [2] ], @refused, [ 101.6, 101.7, 'lost' ])->denied(0), qr/./, 'but not a later one');
is(replay([ [1] ], $refused[0], [ 161.4, 161.6, 'rate_limited' ])->denied(0), '', 'perhaps not free yet');
like(replay([ [1] ], $refused[0], [ 161.5, 161.6, 'rate_limited' ])->denied(0), qr/./, 'free for certain');
like(replay([ [2], [ 1, 101.6e6, 102e6 ] ], @refused)->denied(0), qr/./, 'before the limit was lowered');
is(replay([ [2], [ 1, 101.4e6, 102e6 ] ], @refused)->denied(0), '', 'while it was');
like(replay([ [undef] ], @refused)->denied(0), qr/./, 'refused without a limit');

is(replay([ [9] ], @two)->wrong_total(0, 2, 102e6, 102e6), '', 'the total');
like(replay([ [9] ], @two)->wrong_total(0, 1, 102e6, 102e6), qr/./, 'one too few');
like(replay([ [9] ], @two)->wrong_total(0, 3, 102e6, 102e6), qr/./, 'one too many');
foreach my $total (2, 3)
{
	is(replay([ [9] ], @two, [ 101, 101.5, 'lost' ])->wrong_total(0, $total, 102e6, 102e6),
		'', 'one without an answer may be counted or not');
}
my $replay = replay([ [9] ], @two);
is($replay->wrong_total(0, $_, 101.2e6, 101.3e6), '', "one of two was under way: $_") foreach 1, 2;
like($replay->wrong_total(0, 1, 102e6, 102e6), qr/./, 'and then was not');
$replay = replay([ [9] ], @two);
$replay->crash(103e6, 105e6);
is($replay->wrong_total(0, 1, 106e6, 106e6), '', 'lost in a crash');
like($replay->wrong_total(0, 0, 106e6, 106e6), qr/./, 'before a crash, but long enough');
$replay = replay([ [9] ], @two);
$replay->wrong_total(0, 2, 102e6, 102e6);
$replay->flushed(102e6);
$replay->crash(103e6, 105e6);
like($replay->wrong_total(0, 1, 106e6, 106e6), qr/./, 'before a crash, but seen to be safe');

is(replay([ [9] ], @refused)->strange(0, 'ok', 'rate_limited'), '', 'outcomes as expected');
is(replay([ [9] ], @refused)->strange(0, 'ok'), '1 times rate_limited', 'and not');
is(replay([ [9] ], [ 1, 2, '57P01' ], [ 2, 3, '53200' ])->strange(0), '1 times 53200', 'an error of another kind');
$replay = replay([ [9] ], [ 104, 104.1, 'unavailable' ]);
is($replay->strange(0), '1 times unavailable', 'unavailable');
$replay->outage(103e6, 105e6);
is($replay->strange(0), '', 'while the server is');

my @revoked = (0, 'ok', 'revoked', 102e6, 103e6);
is(replay([], @two, [ 103, 103.5, 'revoked' ])->misjudged(@revoked), '', 'admitted, then revoked');
is(replay([], [ 102.9, 105 ], [ 100, 102, 'revoked' ])->misjudged(@revoked), '', 'under way while it is revoked');
is(replay([], [ 103, 105 ])->misjudged(@revoked), '1 times ok after', 'admitted after it was revoked');
is(replay([], [ 100, 101.999999, 'revoked' ])->misjudged(@revoked), '1 times revoked before', 'refused before');
is(replay([], [ 103, 105, 'lost' ])->misjudged(@revoked), '1 times lost after', 'without an answer');

done_testing();
