# Judges what clients were told, from their logs, and from what the test did and
# when. Nothing here asks the server.
#
#   my $replay = RegPilot::Replay->new(flush_interval => 1_000_000);
#   $replay->limit($number, 100);                     # a key's, to begin with
#   $replay->limit($number, 10, $sent, $done);        # and as it was changed
#   $replay->crash($killed, $back);
#   $replay->read($load);
#   is($replay->strange($number, 'ok', 'rate_limited'), '');
#   is($replay->excess($number), '');
#   is($replay->denied($number), '');
#   is($replay->wrong_total($number, $total, $asked, $answered), '');
#   is($replay->misjudged($number, 'ok', 'revoked', $sent, $done), '');
#
# A call was judged at some moment between "sent" and "received", which is all we
# know; of a call without an answer we do not even know the verdict. Only what is
# wrong whatever it was is called wrong. Times are microseconds of
# CLOCK_MONOTONIC.

package RegPilot::Replay;

use strict;
use warnings;

use List::Util qw(max min);

# No window of this length holds more admissions than the limit.
my $window = 60_000_000;

# A place frees this late, at most.
my $lateness = 1_000_000;

# What a flush may take, beyond its interval, until its counts are safe.
my $flush_time = 1_000_000;

my $unlimited = 9**9**9;

my %is_verdict =
  map { $_ => 1 } qw(ok invalid inactive expired revoked forbidden rate_limited unavailable);

# No answer, as the loss of a connection explains it: the server went away, or
# said that it is going (admin_shutdown, crash_shutdown).
my %is_loss = map { $_ => 1 } qw(lost 57P01 57P02);

# new(flush_interval => microseconds)
sub new
{
	my ($class, %option) = @_;
	return bless {
		keys => {},
		outages => [],
		crashes => [],
		flush_interval => $option{flush_interval},
		flushed => 0,    # when all counts were last known to be safe
	}, $class;
}

# --- what happened

sub key
{
	my ($self, $number) = @_;
	return $self->{keys}{$number} //= {
		limits => [],
		calls => {},         # by outcome: what calls() returns
		under_way => 0,      # calls that are not in there yet
		counted => 0,        # admissions that a total must have in it,
		uncertain => 0,      # those that it may have,
		undecided => [],     # those of which that is not known yet, [ sent, received ],
		looked_at => 0,      # and how many of all have been put into one of these
	};
}

# The calls of a key with that outcome: when they were sent, and in the same order
# when they were answered.
sub calls
{
	my ($key, $outcome) = @_;
	return $key->{calls}{$outcome} //= { sent => [], received => [] };
}

# The setting, in microseconds; it may change.
sub flush_interval
{
	my ($self, $interval) = @_;
	$self->{flush_interval} = $interval;
}

# A key's limit per minute (undef: none): its first, or as a statement changed it.
sub limit
{
	my ($self, $number, $limit, $sent, $done) = @_;
	my $limits = $self->key($number)->{limits};
	$limits->[-1]{until} = $done if @$limits;
	push @$limits, { limit => $limit // $unlimited, from => $sent // 0, until => $unlimited };
}

# The server was out of order.
sub outage
{
	my ($self, $began, $back) = @_;
	push @{ $self->{outages} }, { from => $began, until => $back };
}

# The same, and it lost the counts of the time just before, by then.
sub crash
{
	my ($self, $began, $back) = @_;
	my $safe = max($began - $self->{flush_interval} - $flush_time, $self->{flushed});
	$self->outage($began, $back);
	push @{ $self->{crashes} }, { from => $safe, until => $back };
}

# Takes in what is new in the logs.
sub read
{
	my ($self, $load) = @_;
	$_->{under_way} = 0 foreach values %{ $self->{keys} };
	foreach my $client ($load->clients)
	{
		my @under_way = $load->read_log($client, sub { $self->add(@_) });
		$self->key($_)->{under_way}++ foreach @under_way;
	}
}

sub add
{
	my ($self, $number, $sent, $received, $outcome) = @_;
	my $calls = calls($self->key($number), $outcome);
	push @{ $calls->{sent} }, $sent;
	push @{ $calls->{received} }, $received;
}

# How many calls had that outcome, of these keys or of all.
sub count
{
	my ($self, $outcome, @numbers) = @_;
	@numbers = keys %{ $self->{keys} } unless @numbers;
	my $count = 0;
	$count += @{ calls($self->key($_), $outcome)->{sent} } foreach @numbers;
	return $count;
}

# How many calls had each outcome, in words.
sub summary
{
	my ($self) = @_;
	my %outcomes = map { $_ => 1 } map { keys %{ $_->{calls} } } values %{ $self->{keys} };
	return join ', ', map { $self->count($_) . " $_" } sort keys %outcomes;
}

# --- what is wrong with it: each returns what it finds about a key, '' if nothing

# Outcomes other than those expected. Calls may stay without an answer, and while
# the server is out of order "unavailable" is one.
sub strange
{
	my ($self, $number, @expected) = @_;
	my $key = $self->key($number);
	my %strange = map { $_ => scalar @{ calls($key, $_)->{sent} } } keys %{ $key->{calls} };

	delete @strange{ @expected, keys %is_loss };
	if ($strange{unavailable})
	{
		my $calls = calls($key, 'unavailable');
		$strange{unavailable} = grep {
			my $i = $_;
			!grep { $calls->{sent}[$i] <= $_->{until} && $calls->{received}[$i] >= $_->{from} } @{ $self->{outages} };
		} 0 .. $#{ $calls->{sent} };
	}
	return join ', ', map { $strange{$_} ? "$strange{$_} times $_" : () } sort keys %strange;
}

# Calls not judged by a change: those answered before it was sent must have had the
# one outcome, those sent when it was done must have the other.
sub misjudged
{
	my ($self, $number, $before, $after, $sent, $done) = @_;
	my $key = $self->key($number);
	my @findings;

	foreach my $outcome (sort keys %{ $key->{calls} })
	{
		my $calls = calls($key, $outcome);
		my $early = $outcome eq $before ? 0 : grep { $_ < $sent } @{ $calls->{received} };
		my $late = $outcome eq $after ? 0 : grep { $_ >= $done } @{ $calls->{sent} };
		push @findings, "$early times $outcome before" if $early;
		push @findings, "$late times $outcome after" if $late;
	}
	return join ', ', @findings;
}

# The smallest and the largest limit that a call may have met.
sub limits
{
	my ($key, $sent, $received) = @_;
	my $limits = $key->{limits};
	my @met = @$limits == 1 ? @$limits : grep { $_->{from} <= $received && $_->{until} >= $sent } @$limits;
	my @values = map { $_->{limit} } @met;
	return (min(@values), max(@values));
}

# Windows with more admissions in them than the limit. The last one of a window is
# admitted only if those before it leave a place: so it is the limit that this one
# met which counts. An admission without a limit takes no place.
sub excess
{
	my ($self, $number) = @_;
	my $key = $self->key($number);
	my ($sent, $received) = @{ calls($key, 'ok') }{qw(sent received)};
	my @largest = map { (limits($key, $sent->[$_], $received->[$_]))[1] } 0 .. $#$sent;
	my @order = sort { $received->[$a] <=> $received->[$b] } grep { $largest[$_] < $unlimited } 0 .. $#$sent;
	my @sent = sort { $a <=> $b } @{$sent}[@order];
	my $least = min(map { $_->{limit} } @{ $key->{limits} });
	my ($left, $last_sent, $windows, $worst) = (0, 0, 0, { over => 0 });

	# each window that ends with an answer
	foreach my $n (0 .. $#order)
	{
		my $end = $received->[ $order[$n] ];
		$last_sent = max($last_sent, $sent->[ $order[$n] ]);
		next if $n < $#order && $received->[ $order[ $n + 1 ] ] == $end;

		# answered until then, less those that may have been admitted before it
		$left++ while $left < @sent && $sent[$left] <= $end - $window;
		my $count = $n + 1 - $left;
		next if $count <= $least;

		# any that was not answered when the last one was sent may be the last
		my $limit = 0;
		for (my $i = $n; $i >= 0 && $received->[ $order[$i] ] >= $last_sent; $i--)
		{
			$limit = max($limit, $largest[ $order[$i] ]);
		}
		next if $count <= $limit;
		$windows++;
		$worst = { over => $count - $limit, count => $count, limit => $limit, end => $end }
		  if $count - $limit > $worst->{over};
	}
	return $windows ? "$windows windows, the worst until $worst->{end}: $worst->{count} under a limit of $worst->{limit}" : '';
}

# Refusals while the window, and the second that places free late, cannot have
# held as many as the limit.
sub denied
{
	my ($self, $number) = @_;
	my $key = $self->key($number);
	my @admitting = map { calls($key, $_) } grep { $_ eq 'ok' || !$is_verdict{$_} } keys %{ $key->{calls} };
	my @sent = sort { $a <=> $b } map { @{ $_->{sent} } } @admitting;
	my @received = sort { $a <=> $b } map { @{ $_->{received} } } @admitting;
	my $refused = calls($key, 'rate_limited');
	my ($began, $left, $denied, $worst) = (0, 0, 0, '');

	foreach my $i (sort { $refused->{received}[$a] <=> $refused->{received}[$b] } 0 .. $#{ $refused->{sent} })
	{
		my ($sent, $answered) = ($refused->{sent}[$i], $refused->{received}[$i]);
		my $start = $sent - $window - $lateness;
		my ($limit) = limits($key, $sent, $answered);

		$began++ while $began < @sent && $sent[$began] <= $answered;
		$left++ while $left < @received && $received[$left] <= $start;
		$left-- while $left > 0 && $received[ $left - 1 ] > $start;
		next if $began - $left >= $limit;
		$denied++;
		$worst = "at $sent with " . ($began - $left) . " under a limit of $limit";
	}
	return $denied ? "$denied refusals, the last $worst" : '';
}

# A total that was asked for, with a flush before it, and answered.
sub wrong_total
{
	my ($self, $number, $total, $asked, $answered) = @_;
	my $key = $self->key($number);
	my $admitted = calls($key, 'ok');
	my @admissions = (
		@{ $key->{undecided} },
		map { [ $admitted->{sent}[$_], $admitted->{received}[$_] ] } $key->{looked_at} .. $#{ $admitted->{sent} });
	my $later = 0;
	my $unanswered = $key->{under_way};

	$key->{looked_at} = @{ $admitted->{sent} };
	$key->{undecided} = [];
	foreach my $admission (@admissions)
	{
		my ($sent, $received) = @$admission;
		if (grep { $sent < $_->{until} && $received > $_->{from} } @{ $self->{crashes} })
		{
			$key->{uncertain}++;
		}
		elsif ($received <= $asked)
		{
			$key->{counted}++;
		}
		else
		{
			push @{ $key->{undecided} }, $admission;
			$later++ if $sent <= $answered;
		}
	}
	$unanswered += @{ calls($key, $_)->{sent} } foreach grep { !$is_verdict{$_} } keys %{ $key->{calls} };

	my ($least, $most) = ($key->{counted}, $key->{counted} + $key->{uncertain} + $later + $unanswered);
	return $total < $least ? "$total of at least $least" : $total > $most ? "$total of at most $most" : '';
}

# All totals that were asked for have been judged: crashes cannot undo them.
sub flushed
{
	my ($self, $asked) = @_;
	$self->{flushed} = $asked;
}

1;
