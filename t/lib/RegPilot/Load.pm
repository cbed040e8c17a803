# Clients that keep asking for verdicts and log what they got (t/loadclient.c),
# and what is done to the server meanwhile.
#
#   my $site = RegPilot::Test->new(responder => 0, conf => $load_conf);
#   my $load = RegPilot::Load->new($site);
#   $load->add_keys('SELECT key_id, key FROM ...');       # numbered from 0
#   my $client = $load->start(keys => [ 0 .. 9 ], burst => 100, pause => 20);
#   my ($sent, $done) = $load->execute('UPDATE ...');
#   my ($killed, $back) = $load->kill_worker;
#   $load->stop;
#   $load->read_log($client, sub { my ($number, $sent, $received, $outcome) = @_; ... });
#
# Times are microseconds of CLOCK_MONOTONIC, which is the clients' clock too.

package RegPilot::Load;

use strict;
use warnings;

use Exporter 'import';
use IO::Select;
use IPC::Open2;
use POSIX ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime);

our @EXPORT = qw(now $load_conf);

# Settings of a server that has many clients and is restarted often.
our $load_conf = <<~CONF;
	fsync = off
	shared_buffers = 16MB
	log_statement = none
	regpilot.max_keys = 2000
	CONF

my $program = 't/build/loadclient';
my $record_size = 32;
my @processes;

# A call of a client that was killed is over by then, if the server ever got it.
my $abandoned = 10_000_000;

# Seconds that an answer to execute(), and the end of a client, may take.
my $patience = 60;

sub now() { return int(1e6 * clock_gettime(CLOCK_MONOTONIC)) }

sub new
{
	my ($class, $site) = @_;
	return bless { site => $site, keys => [], clients => [], sessions => {} }, $class;
}

# Adds the keys that a query makes, in rows of key id and key; returns their numbers.
sub add_keys
{
	my ($self, $query) = @_;
	my $first = @{ $self->{keys} };
	push @{ $self->{keys} },
	  map { my ($id, $key) = split /\|/; { id => $id, key => $key } } split /\n/, $self->{site}->sql($query);
	return $first .. $#{ $self->{keys} };
}

sub key_id { return $_[0]{keys}[ $_[1] ]{id} }
sub key { return $_[0]{keys}[ $_[1] ]{key} }

sub conninfo
{
	my ($self, $more) = @_;
	my $node = $self->{site}->node;
	return join ' ', 'host=' . $node->host, 'port=' . $node->port, 'dbname=regpilot connect_timeout=10', $more;
}

# start(keys => [number, ...], an option of loadclient => its number, ...): a client
sub start
{
	my ($self, %option) = @_;
	my $number = @{ $self->{clients} };
	my $file = "$self->{site}{dir}/client$number";
	my $client = {
		option => {%option},
		log => "$file.calls",
		errors => "$file.errors",
		batch => $option{batch} // 1,
		offset => 0,
	};
	my $keys = delete $option{keys};

	append_to_file("$file.keys", join '', map { "$_ $self->{keys}[$_]{key}\n" } @$keys);
	$client->{pid} = $self->{site}->spawn(
		$client->{errors}, {}, $program, 'authorize',
		$self->conninfo('application_name=load user=regpilot_gateway'),
		$client->{log}, "$file.keys", "seed=$number", map { "$_=$option{$_}" } keys %option);
	push @processes, $client->{pid};
	push @{ $self->{clients} }, $client;
	return $client;
}

sub clients { return @{ $_[0]{clients} } }
sub running { return grep { $_->{pid} } $_[0]->clients }

# Waits for a client to end, which must be because it is done.
sub wait_for
{
	my ($self, $client) = @_;
	my $status;
	wait_until('a client to end',
		sub { waitpid($client->{pid}, POSIX::WNOHANG()) == $client->{pid} && defined($status = $?) }, $patience);
	delete $client->{pid};
	die 'a client failed: ' . slurp_file($client->{errors}) if $status != 0;
}

# Ends all clients, once their calls are answered.
sub stop
{
	my ($self) = @_;
	kill 'TERM', map { $_->{pid} } $self->running;
	$self->wait_for($_) foreach $self->running;
}

# Kills a client in the middle of what it does.
sub kill_client
{
	my ($self, $client) = @_;
	kill 'KILL', $client->{pid};
	waitpid delete $client->{pid}, 0;
}

# Hands what is new in a client's log to code->(number, sent, received, outcome):
# the outcome is a verdict, an SQLSTATE, or "lost" with the connection or the
# client. Returns the numbers of the keys in the client's last call if that may
# still be under way.
sub read_log
{
	my ($self, $client, $code) = @_;
	return unless -e $client->{log};

	# what is at the end may still be written to
	my $size = -s $client->{log};
	my $end = $client->{pid} ? $size - $record_size * $client->{batch} : $size;
	open my $file, '<:raw', $client->{log} or die "$client->{log}: $!";
	sysseek $file, $client->{offset}, 0;
	while ($client->{offset} < $end)
	{
		my $rest = $end - $client->{offset};
		sysread($file, my $records, $rest < 65536 ? $rest : 65536) or die "$client->{log}: $!";
		$client->{offset} += length $records;
		my @fields = unpack '(q q l Z12)*', $records;
		for (my $i = 0; $i < @fields; $i += 4)
		{
			my ($sent, $received, $number, $outcome) = @fields[ $i .. $i + 3 ];
			($received, $outcome) = ($sent + $abandoned, 'lost') if $outcome eq '';
			$code->($number, $sent, $received, $outcome);
		}
	}
	sysread $file, my $records, $size - $client->{offset};
	return unpack '(x16 l x12)*', $records // '';
}

# Executes a statement, again and again until it is done, in the session of that
# name. Returns when it was sent, and when it was done.
sub execute
{
	my ($self, $sql, $session) = @_;
	my $handles = $self->{sessions}{ $session // 'admin' } //= do
	{
		my $pid = open2(my $out, my $in, $program, 'execute', $self->conninfo('application_name=admin'));
		push @processes, $pid;
		{ in => $in, out => $out };
	};
	syswrite $handles->{in}, "$sql\n";
	IO::Select->new($handles->{out})->can_read($patience) or die "no answer to: $sql";
	my ($sent, $done, $outcome) = split ' ', readline($handles->{out}) // die "no session to execute: $sql";
	$outcome eq 'done' or die "$outcome: $sql";
	return ($sent, $done);
}

# --- what is done to the server

# What a query gives, or nothing while the server does not let us ask.
sub ask
{
	my ($self, $query) = @_;

	# psql() dies of a broken pipe when the session ends before it has read the query
	my ($result, $out) = eval { $self->{site}->node->psql('regpilot', $query) };
	return defined $result && $result == 0 ? split /[|\n]/, $out : ();
}

# The worker's process: 0 if there is none, undef if we cannot ask.
sub worker
{
	my ($self) = @_;
	my ($pid) = $self->ask(q{SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'regpilot worker'});
	return $pid;
}

# The processes that serve clients, in no order.
sub backends
{
	my ($self) = @_;
	return $self->ask(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'load' ORDER BY random()});
}

# Does something that ends the worker. Returns when it was done, when the server
# was seen to be back, and when a new worker was.
sub interrupt
{
	my ($self, $code) = @_;
	my $old_worker = wait_until('a worker', sub { $self->worker });
	my $began = now;
	my $server;

	$code->();
	wait_until(
		'a new worker',
		sub {
			my $worker = $self->worker;
			$server //= now if defined $worker && $worker != $old_worker;
			return $worker && $worker != $old_worker;
		});
	return ($began, $server, now);
}

sub restart
{
	my ($self) = @_;
	return $self->interrupt(sub { $self->{site}->node->restart });
}

# Stopped as by a crash, but by the postmaster.
sub stop_at_once
{
	my ($self) = @_;
	my $node = $self->{site}->node;
	return $self->interrupt(sub { $node->stop('immediate'); $node->start });
}

sub kill_worker
{
	my ($self) = @_;
	my $pid = wait_until('a worker', sub { $self->worker });
	return $self->interrupt(sub { kill 'KILL', $pid or die "kill: $!" });
}

# One that serves a client.
sub kill_backend
{
	my ($self) = @_;
	my ($pid) = wait_until('a client to be served', sub { ($self->backends)[0] });
	return $self->interrupt(sub { kill 'KILL', $pid or die "kill: $!" });
}

sub kill_postmaster
{
	my ($self) = @_;
	my $node = $self->{site}->node;
	my $postmaster = $node->{_pid};
	my @children = children($postmaster);
	return $self->interrupt(
		sub {
			$node->kill9;
			$self->start_again($postmaster, @children);
		});
}

# Starts a server that was killed. What is left of it would prevent that: a child
# while it is attached to the shared memory, and the postmaster until nothing has
# its pid, not even a zombie.
sub start_again
{
	my ($self, $postmaster, @children) = @_;
	wait_until('the children of a killed postmaster to end', sub { !grep { is_alive($_) } @children }, 30);
	wait_until('a killed postmaster to be reaped', sub { !kill 0, $postmaster });
	$self->{site}->node->start;
}

# The state of a process and its parent, as /proc/PID/stat has them.
sub process
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/stat" or return;
	return (readline($file) // '') =~ /^.*\) (\S) (\d+)/;
}

sub state_of
{
	my ($pid) = @_;
	return (process($pid))[0] // '';
}

sub is_alive
{
	my ($pid) = @_;
	return state_of($pid) !~ /^Z?$/;
}

sub children
{
	my ($parent) = @_;
	return grep { ((process($_))[1] // 0) == $parent } map { m{(\d+)$} } glob '/proc/[0-9]*';
}

# What is left when a test fails.
END
{
	my $exit_code = $?;
	kill 'KILL', grep { ((process($_))[1] // 0) == $$ } @processes;
	$? = $exit_code;
}

1;
