# A whole RegPilot for a test: PostgreSQL with the extension, the responder,
# a web server and upstreams, all private to the test and gone with it.
#
#   my $site = RegPilot::Test->new(env => { REGPILOT_MAX_CONNECTIONS => 4 });
#   my ($key_id, $key) = $site->create_key(plan => 'free');
#   my $answer = $site->post('/api/ai/chat', { messages => [...] }, "X-API-Key: $key");
#   is($answer->{status}, 200);
#
# Needs the binaries of PostgreSQL in PATH and PERL5LIB set to its test modules;
# dev/test sees to both. Tests run at the root of the tree.

package RegPilot::Test;

use strict;
use warnings;

use Cwd qw(getcwd);
use Exporter 'import';
use HTTP::Tiny;
use IPC::Open2;
use IPC::Run ();
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  %body @credential_headers wait_until kill_whole_server json_file user_message events text_of
);

# The bodies that are documented to the letter.
our %body = (
	missing =>
	  '{"error":"Missing API key. Use one of: X-API-Key: YOUR_KEY, X-RegPilot-Key: YOUR_KEY, or Authorization: Bearer YOUR_KEY","headers_checked":["x-api-key","x-regpilot-key","api-key","authorization","x-authorization","proxy-authorization"]}',
	invalid => '{"error":"Invalid or inactive API key"}',
	revoked => '{"error":"API key has been revoked"}',
	forbidden => '{"error":"Insufficient permissions for this operation"}',
	missing_messages => '{"error":"Messages array is required","code":"MISSING_MESSAGES"}',
	invalid_message_format =>
	  q({"error":"Invalid message format. Each message must have 'role' and 'content'","code":"INVALID_MESSAGE_FORMAT"}),
	invalid_quality =>
	  '{"error":"Invalid quality tier. Must be: cheap, balanced, or frontier","code":"INVALID_QUALITY"}',
);

# In the order in which they are looked at.
our @credential_headers =
  qw(X-API-Key X-RegPilot-Key Api-Key Authorization X-Authorization Proxy-Authorization);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $test_name = ($0 =~ m{([^/]+)\.pl$})[0];
my @sites;
my $keys_made = 0;

# The web servers: what of fcgi/deploy/ they are started with, how, in the foreground, and
# how they are told to read it again: by a signal or a command.
my %web_server = (
	nginx => {
		files => ['nginx.conf'],
		start => [ qw(/usr/sbin/nginx -p @PREFIX@ -c @PREFIX@/nginx.conf -g), 'daemon off;' ],
		reload => 'HUP',
	},
	'nginx-auth' => {
		files => ['nginx-auth.conf'],
		start => [ qw(/usr/sbin/nginx -p @PREFIX@ -c @PREFIX@/nginx-auth.conf -g), 'daemon off;' ],
	},
	apache => {
		files => ['apache.conf'],
		start => [qw(/usr/sbin/apache2 -f @PREFIX@/apache.conf -D FOREGROUND)],
		reload => 'USR1',
	},
	lighttpd => {
		files => [ 'lighttpd.conf', map { "lighttpd-errors/$_.html" } 400, 403, 413, 431, 500, 503 ],
		start => [qw(setsid /usr/sbin/lighttpd -D -f @PREFIX@/lighttpd.conf)],
		reload => 'USR1',
	},
	caddy => {
		files => ['Caddyfile'],
		start => [qw(/usr/bin/caddy run --adapter caddyfile --config @PREFIX@/Caddyfile)],
		reload => [
			qw(/usr/bin/caddy reload --force --adapter caddyfile --config @PREFIX@/Caddyfile
			  --address unix/@PREFIX@/caddy-admin.sock)
		],
	},
);

# Waits until the code returns something true, which is returned; gives up after
# some seconds (60 unless said otherwise).
sub wait_until
{
	my ($what, $code, $seconds) = @_;
	my $end = time + ($seconds // 60);
	while (1)
	{
		my $result = $code->();
		return $result if $result;
		die "timed out waiting for $what" if time > $end;
		sleep 0.05;
	}
}

# Kills a server's postmaster, and waits until all its processes have noticed and ended.
sub kill_whole_server
{
	my ($node) = @_;
	my $data = $node->data_dir;
	my $postmaster = $node->{_pid};
	$node->kill9;
	return wait_until('all processes to end',
		sub { !kill(0, $postmaster) && !grep { (readlink($_) // '') eq $data } glob '/proc/[0-9]*/cwd' });
}

# The objects of a file of JSON lines, but for a last one that is being written.
sub json_file
{
	my ($file) = @_;
	return map { $json->decode($_) } slurp_file($file) =~ /^(.+)\n/mg;
}

# The simplest chat request, with further members.
sub user_message
{
	return { messages => [ { role => 'user', content => 'test' } ], @_ };
}

# The data of an event stream's events: decoded, but for [DONE], which stays.
sub events
{
	my ($stream) = @_;
	return map { /^data: (.*)$/s or die "not a data event: $_"; $1 eq '[DONE]' ? $1 : $json->decode($1) }
	  grep { !/^:/ } split /\n\n/, $stream;
}

# The text that the chunks of a stream, or the one object, add up to.
sub text_of
{
	my ($answer) = @_;
	return $answer->{json}{choices}[0]{message}{content} if $answer->{json};
	return join '', map { $_->{choices}[0]{delta}{content} // '' }
	  grep { ref && $_->{choices} } events($answer->{body});
}

# new(conf => postgresql.conf lines, env => settings of the responder,
#     web_server => apache, lighttpd, caddy or nginx-auth instead of nginx, values => further
#     placeholders of its configuration,
#     keepalive => connections that nginx keeps to the responder,
#     binary => the responder's, if not the one that was built,
#     responder => 0 for a database alone, streaming => 1 or 'logical': its changes
#     can be followed, install_path => where PostgreSQL is, if not in PATH,
#     initdb => [ further arguments ]); env and values may be code that is given the site
sub new
{
	my ($class, %option) = @_;
	my $self = bless {
		dir => PostgreSQL::Test::Utils::tempdir_short(),
		keepalive => $option{keepalive},
		web_server => $option{web_server} // 'nginx',
		binary => $option{binary} // $ENV{REGPILOT_TEST_RESPONDER},
		upstreams => [],
		projects => {},
	}, $class;
	push @sites, $self;
	my $log = "$PostgreSQL::Test::Utils::log_path/${test_name}_" . @sites;
	$self->{responder_log} = "${log}_responder.log";
	$self->{web_log} = "${log}_$self->{web_server}.log";
	foreach my $name (qw(env values))
	{
		$self->{$name} = ref $option{$name} eq 'CODE' ? $option{$name}->($self) : $option{$name} // {};
	}

	my $node = $self->{node} = make_node('db' . @sites, %option);
	$node->start;
	$node->safe_psql('postgres', 'CREATE DATABASE regpilot');
	$node->safe_psql('regpilot', 'CREATE EXTENSION regpilot');
	$node->safe_psql('regpilot', 'CREATE ROLE regpilot_gateway LOGIN IN ROLE regpilot_responder');
	$self->wait_for_worker;

	if ($option{responder} // 1)
	{
		$self->start_responder;
		$self->start_web_server;
		$self->wait_for_verdicts;
	}
	return $self;
}

# A cluster that has been set up for RegPilot and not been started; options as for new().
sub make_node
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, install_path => $option{install_path});

	$node->init(
		extra => [ '--encoding=UTF8', '--no-locale', @{ $option{initdb} // [] } ],
		allows_streaming => $option{streaming});
	$node->append_conf('postgresql.conf', <<~CONF . ($option{conf} // ''));
		shared_preload_libraries = 'regpilot'
		regpilot.database = 'regpilot'
		restart_after_crash = on
		max_connections = 50
		CONF
	return $node;
}

sub node { return $_[0]{node} }
sub url { return "http://127.0.0.1:$_[0]{port}" }

sub sql
{
	my ($self, $query) = @_;
	return $self->{node}->safe_psql('regpilot', $query);
}

# --- keys

# create_key(plan => 'enterprise', environment =>, permissions => [...],
#            requests_per_minute =>, expires_at =>): key id and key
sub create_key
{
	my ($self, %option) = @_;
	my $plan = $option{plan} // 'enterprise';
	my $project = $self->{projects}{$plan} //=
	  $self->sql("SELECT regpilot.create_project('project $plan', '$plan')");
	my $arguments = "'$project', 'key " . ++$keys_made . "'";
	$arguments .= ", permissions => '{" . join(',', @{ $option{permissions} }) . "}'"
	  if $option{permissions};
	foreach my $name (qw(environment requests_per_minute expires_at))
	{
		$arguments .= ", $name => '$option{$name}'" if defined $option{$name};
	}
	return split /\|/, $self->sql("SELECT key_id, key FROM regpilot.create_key($arguments)");
}

# --- people at the dashboard

# A role that signs in with a password: an admin, or a member of these projects. Gives its password.
sub add_person
{
	my ($self, $role, %option) = @_;
	my $node = $self->{node};
	my $password = "the 'password' of $role " . int rand 1e9;
	my $hba = $node->data_dir . '/pg_hba.conf';
	if (slurp_file($hba) !~ /^local all \+people/m)
	{
		my $rest = slurp_file($hba);
		unlink $hba;
		append_to_file($hba, "local all +people scram-sha-256\n$rest");
		$self->sql('CREATE ROLE people');
		$node->reload;
	}
	my $group = $option{admin} ? 'regpilot_admin' : 'regpilot_reader';
	# (a password is in the server's log as it is said)
	$self->sql(qq{SET log_statement = none; SET log_min_duration_statement = -1; CREATE ROLE "$role" LOGIN PASSWORD '} . $password =~ s/'/''/gr . qq{' IN ROLE people, $group});
	$self->sql("INSERT INTO regpilot.project_member VALUES ('$_', '$role')") foreach @{ $option{projects} // [] };
	return $password;
}

# Of one key, after a flush.
sub overview
{
	my ($self, $key_id, $columns) = @_;
	$self->sql('SELECT regpilot.flush_usage()');
	return $self->sql("SELECT $columns FROM regpilot.key_overview WHERE key_id = '$key_id'");
}

# The worker has found its database and serves it.
sub wait_for_worker
{
	my ($self) = @_;
	$self->{node}
	  ->poll_query_until('regpilot', q{SELECT (regpilot.authorize('nobody')).verdict}, 'invalid')
	  or die "the worker did not come up";
}

# --- the responder and the web server

sub spawn
{
	my ($self, $log, $env, @command) = @_;
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		@ENV{ keys %$env } = values %$env;
		$self->{inherited} ? open STDIN, '<&', $self->{inherited} : open STDIN, '<', '/dev/null';
		open STDOUT, '>>', $log;
		open STDERR, '>&', \*STDOUT;
		exec { $command[0] } @command or POSIX::_exit(127);
	}
	return $pid;
}

sub responder_binary { return $_[0]{binary} // getcwd() . '/fcgi/build/regpilot-fcgi' }
sub responder_socket { return "$_[0]{dir}/responder.sock" }
sub responder_pid { return $_[0]{responder} }

sub responder_env
{
	my ($self) = @_;
	my $node = $self->{node};
	return {
		REGPILOT_LISTEN => 'unix:' . $self->responder_socket,
		REGPILOT_DATABASE => 'host='
		  . $node->host
		  . ' port='
		  . $node->port
		  . ' dbname=regpilot user=regpilot_gateway',
		%{ $self->{env} },
	};
}

sub start_responder
{
	my ($self) = @_;
	my $log = $self->{responder_log};
	my $seen = -e $log ? -s $log : 0;
	my $pid = $self->{responder} = $self->spawn($log, $self->responder_env, $self->responder_binary);
	wait_until(
		'the responder to listen',
		sub {
			waitpid($pid, POSIX::WNOHANG()) == 0 or die "the responder ended: " . slurp_file($log);
			return -e $log && slurp_file($log, $seen) =~ /listening on/;
		},
		20);
}

# Whether there is such a process that has not ended; one that nobody has waited for has.
sub is_running { return defined readlink "/proc/$_[0]/exe" }

# Sends a signal and returns the exit status as wait() gives it, if it is a child of ours.
sub end_responder
{
	my ($self, $signal) = @_;
	return reap(delete $self->{responder}, $signal, 40);
}

sub reap
{
	my ($pid, $signal, $seconds) = @_;
	my $status;
	kill $signal, $pid;
	eval {
		wait_until(
			"process $pid to end",
			sub {
				my $ended = waitpid $pid, POSIX::WNOHANG();
				$status = $? if $ended == $pid;
				return $ended == $pid || $ended < 0 && !is_running($pid);
			},
			$seconds);
	} or do { kill 'KILL', $pid; waitpid $pid, 0; die $@ };
	return $status;
}

# Starts the web server with the sample configuration, for a responder on that socket.
sub start_web_server
{
	my ($self, $socket) = @_;
	my $dir = $self->{dir};
	my $server = $web_server{ $self->{web_server} };
	my $port = $self->{port} = PostgreSQL::Test::Cluster::get_free_port();

	$self->{value} =
	  { %{ $self->{values} }, PREFIX => $dir, PORT => $port, SOCKET => $socket // $self->responder_socket };
	foreach my $file (@{ $server->{files} })
	{
		my $text = $self->fill(slurp_file("fcgi/deploy/$file"));
		$text =~ s/keepalive \K\d+;/$self->{keepalive};/ if $self->{keepalive};
		$text =~ s/#(?=request_buffers)// if $file eq 'Caddyfile' && `/usr/bin/caddy version` !~ /^v?2\.[0-6]\./;
		mkdir "$dir/$1" if $file =~ m{(.*)/};
		unlink "$dir/$file";
		append_to_file("$dir/$file", $text);
	}
	# Caddy looks for a home of its own.
	$self->{web_pid} = $self->spawn($self->{web_log}, { HOME => $dir, XDG_CONFIG_HOME => $dir },
		map { $self->fill($_) } @{ $server->{start} });
	wait_until($self->{web_server}, sub { HTTP::Tiny->new->get($self->url . '/healthz')->{status} != 599 }, 20);
}

# With the placeholders of the configurations replaced.
sub fill
{
	my ($self, $text) = @_;
	return $text =~ s/@([A-Z]+)@/$self->{value}{$1}/gr;
}

# Has the web server read its configuration again.
sub reload_web_server
{
	my ($self) = @_;
	my $reload = $web_server{ $self->{web_server} }{reload};
	return kill $reload, $self->{web_pid} if !ref $reload;
	my $output;
	IPC::Run::run([ map { $self->fill($_) } @$reload ], '<', \undef, '>&', \$output) or die $output;
}

sub end_web_server
{
	my ($self) = @_;
	return reap(delete $self->{web_pid}, 'TERM', 20);
}

# The responder has found its database.
sub wait_for_verdicts
{
	my ($self) = @_;
	wait_until('verdicts', sub { $self->get('/api/auth/verify', 'X-API-Key: nobody')->{status} == 401 });
}

# --- upstreams

# start_upstream(tls => 'localhost' and so on: a certificate for that name from
# the CA the responder trusts; untrusted => 1: from another one): the upstream's
# base URL. The requests that it got are in the file $site->upstream_requests.
sub start_upstream
{
	my ($self, %option) = @_;
	my $requests = $self->upstream_requests;
	my @command = ('python3', 't/upstream.py', $requests);
	push @command, $self->certificate($option{tls}, $option{untrusted} ? 'other' : 'ca') if $option{tls};

	# It ends when the pipe to its standard input does, so with this process at
	# the latest.
	my $pid = open2(my $out, my $in, @command);
	push @{ $self->{upstreams} }, { pid => $pid, in => $in };
	chomp(my $port = <$out> // die 'the upstream did not start');
	return $option{tls} ? "https://localhost:$port/v1" : "http://127.0.0.1:$port/v1";
}

sub upstream_requests { return "$_[0]{dir}/requests" }

# The last request that any upstream got.
sub last_request
{
	my ($self) = @_;
	my @requests = grep { $_->{event} eq 'request' } json_file($self->upstream_requests);
	return $requests[-1];
}

# add_upstream(name, base URL, secret's name)
sub add_upstream
{
	my ($self, $name, $url, $secret_name) = @_;
	my $secret = $secret_name ? "'$secret_name'" : 'NULL';
	$self->sql("INSERT INTO regpilot.upstream VALUES ('$name', '$url', $secret)");
}

# add_routes([alias, upstream, model, priority], ...), and waits until the
# responder knows them. It hears of changes from PostgreSQL, some time after the
# COMMIT, and then reads all: so once it knows one more route it knows these.
sub add_routes
{
	my ($self, @routes) = @_;
	my $mark = 'mark-' . ++$self->{marks};
	foreach (@routes, [ $mark, 'builtin', $mark, 1 ])
	{
		my ($alias, $upstream, $model, $priority) = @$_;
		$self->sql(sprintf q{INSERT INTO regpilot.route (alias, upstream, model, priority)
							 VALUES ('%s', '%s', '%s', %d)}, $alias, $upstream, $model, $priority // 100);
	}
	my $key = $self->{mark_key} //= ($self->create_key)[1];
	wait_until("the routes to be known",
		sub { ($self->chat($key, model => $mark)->{headers}{'x-regpilot-model'} // '') eq "builtin/$mark" });
}

# A CA of that name, and a server certificate and its key; files' names.
sub authority
{
	my ($self, $ca) = @_;
	my $file = "$self->{dir}/$ca";
	system_or_bail('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
		'-nodes', '-days', '2', '-subj', "/CN=RegPilot test $ca", '-keyout', "$file.key", '-out', "$file.pem")
	  unless -e "$file.pem";
	return "$file.pem";
}

sub certificate
{
	my ($self, $host, $ca) = @_;
	my $ca_file = $self->authority($ca);
	my $file = "$self->{dir}/$ca-$host";
	(my $ca_key = $ca_file) =~ s/pem$/key/;
	system_or_bail('openssl', 'req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
		'-nodes', '-subj', "/CN=$host", '-keyout', "$file.key", '-out', "$file.csr");
	append_to_file("$file.ext", "subjectAltName=DNS:$host\n");
	system_or_bail('openssl', 'x509', '-req', '-in', "$file.csr", '-CA', $ca_file, '-CAkey', $ca_key,
		'-CAcreateserial', '-days', '2', '-extfile', "$file.ext", '-out', "$file.pem");
	return ("$file.pem", "$file.key");
}

# --- calls

# curl(path, argument...): what curl saw: status, headers (lower case name to
# value), body, json (its decoded form, if it is JSON), exit (curl's own).
sub curl
{
	my ($self, $path, @arguments) = @_;
	my @command = ('curl', '--silent', '--show-error', '--no-buffer', '--include', '--max-time', '60',
		@arguments, $self->url . $path);
	my ($out, $err) = ('', '');
	IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err);
	my $exit = $? >> 8;
	# skip what comes before the final answer: 100 Continue
	my ($head, $body);
	do { ($head, $body) = split /\r\n\r\n/, $body // $out, 2 } while ($head // '') =~ m{^HTTP/\S+ 1\d\d };
	my ($status_line, @lines) = split /\r\n/, $head // '';
	my %header = map { my ($name, $value) = split /:\s*/, $_, 2; (lc $name => $value) } @lines;
	return {
		status => (split / /, $status_line // '')[1] // 0,
		headers => \%header,
		body => $body // '',
		json => scalar eval { $json->decode($body) },
		exit => $exit,
		error => $err,
	};
}

sub get
{
	my ($self, $path, @headers) = @_;
	return $self->curl($path, map { ('--header', $_) } @headers);
}

# post(path, body, header...): the body is a string, or data to make JSON of.
sub post
{
	my ($self, $path, $body, @headers) = @_;
	$body = $json->encode($body) if ref $body;
	my $file = "$self->{dir}/body";
	open my $handle, '>:raw', $file or die "$file: $!";
	print $handle $body;
	close $handle;
	return $self->curl($path, '--data-binary', "\@$file",
		map { ('--header', $_) } 'Content-Type: application/json', @headers);
}

# The chat call of the documentation, with a key.
sub chat
{
	my ($self, $key, %member) = @_;
	return $self->post('/api/ai/chat', user_message(%member), "X-API-Key: $key");
}

# stream(key, member...): the chat call again, but with the time at which each
# piece came in: { status, headers, seconds, pieces => [ [seconds, data], ... ] }
sub stream
{
	my ($self, $key, %member) = @_;
	my $start = time;
	my @pieces;
	my $answer = HTTP::Tiny->new(timeout => 60)->request(
		'POST',
		$self->url . '/api/ai/chat',
		{
			headers => { 'Content-Type' => 'application/json', 'X-API-Key' => $key },
			content => $json->encode(user_message(%member)),
			data_callback => sub { push @pieces, [ time - $start, $_[0] ] },
		});
	return {
		status => $answer->{status},
		headers => $answer->{headers},
		seconds => time - $start,
		pieces => \@pieces,
		body => join('', map { $_->[1] } @pieces),
	};
}

# in_parallel(n, code): runs code->(0) to code->(n - 1) each in a process of its
# own; returns a hash that adds up the hashes they return.
sub in_parallel
{
	my ($self, $clients, $code) = @_;
	my @readers;
	foreach my $client (0 .. $clients - 1)
	{
		pipe my $reader, my $writer or die "pipe: $!";
		my $pid = fork // die "fork: $!";
		if ($pid == 0)
		{
			# leave by _exit: the END blocks belong to the parent
			my $result = eval { $code->($client) } // { "died: $@" => 1 };
			print $writer $json->encode($result);
			close $writer;
			POSIX::_exit(0);
		}
		push @readers, [ $pid, $reader ];
	}
	my %sum;
	foreach (@readers)
	{
		my ($pid, $reader) = @$_;
		local $/;
		my $result = $json->decode(<$reader> || '{"no result":1}');
		waitpid $pid, 0;
		$sum{$_} += $result->{$_} foreach keys %$result;
	}
	return \%sum;
}

# --- logs

# All log files of this test: server, responder, web server.
sub logs
{
	my ($self) = @_;
	return grep { -e } $self->{node}->logfile, $self->{responder_log}, $self->{web_log},
	  glob "$self->{dir}/*.log";
}

# Those of them that hold the string.
sub logs_with
{
	my ($self, $string) = @_;
	return grep { index(slurp_file($_), $string) >= 0 } $self->logs;
}

END
{
	# as PostgreSQL::Test::Cluster does: leave the exit code alone
	my $exit_code = $?;
	foreach my $site (@sites)
	{
		foreach my $pid (grep { defined } $site->{responder}, $site->{web_pid})
		{
			kill 'KILL', $pid if $pid == ($site->{responder} // 0);
			kill 'TERM', $pid;
			waitpid $pid, 0;
		}
		foreach my $upstream (@{ $site->{upstreams} })
		{
			close $upstream->{in};
			waitpid $upstream->{pid}, 0;
		}
		next if Test::More->builder->is_passing && $exit_code == 0;
		foreach my $log ($PostgreSQL::Test::Utils::test_logfile, $site->logs)
		{
			my @lines = split /\n/, slurp_file($log);
			diag("last lines of $log:\n", join("\n", @lines > 30 ? @lines[ -30 .. -1 ] : @lines));
		}
	}
	$? = $exit_code;
}

1;
