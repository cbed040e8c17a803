# Upstreams that break in all ways at once, under load: with another one in the route each
# answer is that one's, and without one it is the documented error; nobody else notices.

use strict;
use warnings;
use lib 't/lib';
use HTTP::Tiny;
use IO::Socket::INET;
use RegPilot::Test;
use RegPilot::Traffic;
use Test::More;
use Time::HiRes qw(time);

# ms: of silence, and in all
my $silence = 700;
my $limit = 6000;
my $site = RegPilot::Test->new(
	conf => "log_statement = none\n",
	env => { REGPILOT_CONNECT_TIMEOUT => $silence, REGPILOT_UPSTREAM_TIMEOUT => $silence, REGPILOT_MAX_DURATION => $limit });
my ($key_id, $key) = $site->create_key;
my $bad = $site->start_upstream;

# Listens, but takes up no connection: the queue is full.
my $deaf = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) // die "listen: $!";
my @waiting = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->sockport, Blocking => 0) } 1 .. 4;

$site->add_upstream('good', $site->start_upstream);
my %address = (refused => 'http://127.0.0.1:1/v1', deaf => 'http://127.0.0.1:' . $deaf->sockport . '/v1');
my @begun = qw(dies no-done silent-stream);    # they begin a stream
my @late = qw(hang deaf dribble);
my @faults = (qw(rst garbage not-http cut error-500 refused), @late);
# The good one is only as slow as the machine is.
$site->sql("UPDATE regpilot.upstream SET connect_timeout_ms = $limit, timeout_ms = $limit WHERE name = 'good'");
$site->add_upstream("bad-$_", $address{$_} // $bad) foreach @faults, @begun;
$site->add_upstream("alone-$_", $address{$_} // $bad) foreach @faults, @begun;
$site->add_routes(
	(map { ([ $_, "bad-$_", $_, 1 ], [ $_, 'good', 'at-once', 2 ]) } @faults, @begun),
	(map { [ "alone-$_", "alone-$_", $_ ] } @faults, @begun),
	map { [ $_, 'good', $_ ] } qw(at-once ok));

# Calls each alias several times in its turn; what was wrong, and how often.
sub call_all
{
	my ($seed, @aliases) = @_;
	my $http = HTTP::Tiny->new(timeout => 60);
	my %seen;
	foreach my $n (0 .. 2 * @aliases - 1)
	{
		my $alias = $aliases[ ($seed + $n) % @aliases ];
		my $streamed = $n >= @aliases;
		my ($fault) = $alias =~ /^(?:alone-)?(.*)$/;
		my $start = time;
		my $answer = $http->post(
			$site->url . '/api/ai/chat',
			{
				headers => { 'X-API-Key' => $key, 'Content-Type' => 'application/json' },
				content => JSON::PP::encode_json(user_message(model => $alias,
					stream => $streamed ? JSON::PP::true : JSON::PP::false)),
			});
		my $seconds = time - $start;
		my ($status, $body, $model) = ($answer->{status}, $answer->{content}, $answer->{headers}{'x-regpilot-model'} // '');
		my $begins = $streamed && grep { $_ eq $fault } @begun;
		my $verdict =
		    $status == 200 && $model eq 'good/at-once' && $body =~ /five/ && (!$streamed || $body =~ /\[DONE\]\n\n\z/) ? 'good'
		  : $status == 200 && $begins && $model =~ m{/$fault$} && $body =~ /data: \{"error":\{.*"code":"UPSTREAM_(FAILED|TIMEOUT)".*\}\}\n\n\z/ && $body !~ /DONE/ ? 'broken off'
		  : $status == 502 && $body =~ /"code":"UPSTREAM_FAILED"/ ? 'failed'
		  : $status == 504 && $body =~ /"code":"UPSTREAM_TIMEOUT"/ ? 'late'
		  : "$status $model $body";
		$verdict .= ', streamed' if $streamed && $verdict eq 'late';
		$verdict = sprintf 'after %.1f s', $seconds if $seconds > $limit / 1000 + 10;
		$seen{"$alias: $verdict"}++;
	}
	return \%seen;
}

my $traffic = RegPilot::Traffic->new($site, model => 'at-once', stream_model => 'ok');
$traffic->start;
$traffic->wait_until_well;

# Where the answer is to be one object a byte now and then is no silence: the first to call
# that one hear of it when all time is over; it is passed over from then on. Of a stream, whole
# events are waited for.
my $clients = 6;
my $seen = $site->in_parallel($clients, sub { call_all($_[0] * 2, @faults, @begun) });
my @wrong;
foreach (sort keys %$seen)
{
	my ($fault, $verdict) = split /: /, $_, 2;
	push @wrong, "$_ ($seen->{$_})"
	  unless $verdict eq 'good' || $verdict eq 'broken off' || $_ eq 'dribble: late' && $seen->{$_} <= $clients;
}
is_deeply(\@wrong, [], 'with another upstream in the route it answers, unless a stream had begun');
is_deeply([ grep { !$seen->{"$_: good"} } @faults, @begun ], [], 'in each case');
note(join ', ', map { "$_: $seen->{$_}" } sort keys %$seen);

my @alone = map { "alone-$_" } @faults, @begun;
$seen = $site->in_parallel($clients, sub { call_all($_[0] * 2, @alone) });
my %expected;
foreach my $alias (@alone)
{
	my ($fault) = $alias =~ /^alone-(.*)$/;
	my $is_late = grep { $_ eq $fault } @late, 'silent-stream';
	$expected{"$alias: $_"} = 1 foreach $is_late ? ('late', 'late, streamed') : 'failed';
	$expected{"$alias: broken off"} = 1 if grep { $_ eq $fault } @begun;
}
is_deeply([ grep { !$expected{$_} } sort keys %$seen ], [], 'without another one: the error that it should be, in time');
note(join ', ', map { "$_: $seen->{$_}" } sort keys %$seen);

$traffic->stop_and_check('meanwhile', 'verify 200', 'chat 200', 'stream 200', 'long stream 200');

done_testing();
